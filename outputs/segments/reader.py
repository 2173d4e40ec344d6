"""One segment's bytes for a reader that takes them from the first to the last: reads ahead, checksums."""

from __future__ import annotations

from collections.abc import Generator
from typing import Union

from backup.model import Extent
from backup.protocols import SnapshotReader
from backup.restore_point.checksums import Checksums
from backup.transfer import backup_stream

ZEROS = memoryview(bytes(1 << 20))  # of a hole at once: what the kernel asks for at the most

Answer = Union[bytes, memoryview]


class SegmentReader:
    """Gives a segment's bytes from wherever it is asked, in order if it is asked in order.

    `checksums` are those of what was given in order, from the first byte on; `complete` when it was all.
    """

    def __init__(self, reader: SnapshotReader, segment: Extent) -> None:
        self._reader = reader
        self._segment = segment
        self._end = segment.offset + segment.length
        self._begin(segment.offset)

    @property
    def complete(self) -> bool:
        return self._whole and self._position == self._end

    def _begin(self, position: int) -> None:
        self._whole = position == self._segment.offset
        self._position = position
        self.checksums = Checksums()
        self._pieces: Generator[tuple[int, bytes], None, None] | None = None
        self._offset, self._data = position, b""  # of the piece that comes next, or is being given

    def at_once(self, offset: int, length: int) -> Answer | None:
        """Give bytes from an offset on, `length` at the most; None where `load` has to come first.

        Nothing is given at its end alone.
        """
        position = self._segment.offset + offset
        if position >= self._end:
            return b""
        if position != self._position or self._pieces is None:
            return None
        given: Answer
        if position < self._offset:
            given = ZEROS[: min(length, self._offset - position)]
        else:
            start = position - self._offset
            given = memoryview(self._data)[start : start + length]
        if not given:
            return None
        self._position += len(given)
        return given

    def load(self, offset: int) -> None:
        """Have the next piece at hand. Waits for it; raises BackupError."""
        position = self._segment.offset + offset
        if position != self._position or self._pieces is None:
            self.close()
            self._begin(position)
            self._pieces = backup_stream.pieces(self._reader, Extent(position, self._end - position))
        try:
            piece = next(self._pieces, None)
        except BaseException:
            self._pieces = None  # it has ended, and the rest would look like a hole to who asks again
            raise
        if piece:
            self._offset, self._data = piece
            if self._data:  # without, it tells of a hole
                self.checksums.add(*piece)
        else:
            self._offset, self._data = self._end, b""

    def close(self) -> None:
        """Wait for the reads that are under way."""
        if self._pieces is not None:
            self._pieces.close()


class ZerosReader:
    """Gives the bytes of a file of zeros."""

    complete = False  # it is no segment
    checksums = Checksums()

    def __init__(self, size: int) -> None:
        self._size = size

    def at_once(self, offset: int, length: int) -> Answer:
        return ZEROS[: max(0, min(length, self._size - offset))]

    def load(self, offset: int) -> None:
        raise AssertionError("it always has an answer")

    def close(self) -> None:
        pass
