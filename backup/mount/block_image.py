"""A saved image's bytes at any offset: in blocks, with read-ahead for sequential readers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from ..errors import BackupError, TransientError
from ..protocols import RandomAccess
from ..stored import SavedImage
from ..system.time_limit import CheckStop, awaited, never_stop
from .blocks import Blocks, Data, Key
from .data_map import DataMap

BLOCK = 1 << 20  # bytes
GROUP = 8  # blocks that are read ahead in one read: neighbours share what the output has to fetch
AHEAD = 2 * GROUP  # blocks
ZEROS: Data = memoryview(bytes(BLOCK))
HOLE: Future[Data] = Future()
HOLE.set_result(ZEROS)


class _ReadTogether(BackupError):
    """Blocks cannot be read together: each may be readable."""


@dataclass(frozen=True)
class BlockImage:
    """An image that is read in blocks. `limit`: seconds that a read may take, unless it has to stop."""

    saved: SavedImage
    source: RandomAccess
    data: DataMap
    blocks: Blocks
    limit: float
    check_stop: CheckStop = never_stop

    @property
    def size(self) -> int:
        return self.saved.size

    def is_there(self, offset: int, length: int) -> bool:
        """Return whether `read` returns at once."""
        return all(self._is_there(number) for number in self._numbers(offset, length))

    def read(self, offset: int, length: int) -> Data:
        """Return these bytes, fewer only at the image's end. Raises BackupError."""
        end = min(offset + length, self.size)
        numbers = self._numbers(offset, length)
        started = [(number, self._block(number)) for number in numbers]
        self._read_ahead(offset, numbers)
        parts = []
        for number, future in started:
            block, start = memoryview(self._awaited(number, future)), number * BLOCK
            parts.append(block[max(offset - start, 0) : end - start])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _numbers(self, offset: int, length: int) -> range:
        end = min(offset + length, self.size)
        return range(offset // BLOCK, max(-(-end // BLOCK), offset // BLOCK))

    def _is_there(self, number: int) -> bool:
        return self.blocks.is_read(self._key(number)) or not self._has_data(number)

    def _block(self, number: int) -> Future[Data]:
        key = self._key(number)
        if key not in self.blocks and not self._has_data(number):
            return HOLE
        return self.blocks.get(key, partial(self._load, range(number, number + 1)))

    def _awaited(self, number: int, future: Future[Data]) -> Data:
        began = time.monotonic()
        try:
            try:
                return awaited(future, self.limit, self.check_stop)
            except _ReadTogether:  # perhaps it is another block that cannot be read
                left = self.limit - (time.monotonic() - began)
                return awaited(self._block(number), max(left, 0), self.check_stop)
        except TimeoutError as error:
            hint = "is the repository's host reachable? see OUTPUT_STALL_TIMEOUT"
            raise TransientError(f"no answer from the output within {self.limit:.0f} s", hint) from error

    def _read_ahead(self, offset: int, numbers: range) -> None:
        """Read ahead as far as blocks before these are there, one after the other."""
        if not numbers or (len(numbers) == 1 and numbers[0] * BLOCK < offset):
            return  # within a block
        before = range(numbers[-1] - 1, max(numbers[-1] - 1 - AHEAD, -1), -1)
        known = sum(1 for _ in takewhile(self._is_there, before))
        last = min(numbers[-1] + known, (self.size - 1) // BLOCK)
        for group in range((numbers[-1] + GROUP) // GROUP, last // GROUP + 1):
            ahead = range(group * GROUP, min((group + 1) * GROUP, -(-self.size // BLOCK)))
            if any(map(self._has_data, ahead)):
                self.blocks.read_ahead([self._key(one) for one in ahead], partial(self._load, ahead))

    def _load(self, numbers: range) -> Sequence[Data]:
        """Read blocks, one after the other in the image. Raises BackupError, _ReadTogether if several."""
        start = numbers[0] * BLOCK
        length = min(len(numbers) * BLOCK, self.size - start)
        try:
            read = memoryview(self.source.read(start, length))
        except BackupError as error:
            raise _ReadTogether(error.message, error.hint) if len(numbers) > 1 else error from error.__cause__
        return [read[at : at + BLOCK] for at in range(0, length, BLOCK)]

    def _has_data(self, number: int) -> bool:
        return self.data.has_data(number * BLOCK, BLOCK)

    def _key(self, number: int) -> Key:
        return self.saved.target, number
