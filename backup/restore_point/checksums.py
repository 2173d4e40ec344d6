"""Checksums of an image's bytes, computed while they are streamed: verification compares with them.

A record per read: offset (8 bytes), length (4 bytes), both big-endian, and the xxh3-128 digest (16 bytes) of
the bytes. No read crosses a multiple of 4 MiB, and each such piece of the image has at most one record. What
has none was a hole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice

import xxhash

from ..stored import Packed
from ..system.spool import Spool, chunks

ALGORITHM = "xxh3-128"
RECORD = struct.Struct(">QI16s")
BATCH = 4096  # records that are read or written at a time


class Checksums:
    """The records of one image, in ascending order. Those of 16 TiB of data take 112 MiB.

    `packed` has them.
    """

    def __init__(self, packed: Packed | None = None) -> None:
        """Without `packed` there are none yet."""
        self.packed = Spool() if packed is None else packed

    def add(self, offset: int, data: bytes) -> None:
        self.append(RECORD.pack(offset, len(data), digest(data)))

    def append(self, records: bytes) -> None:
        """Add packed records; only where they were not packed before."""
        assert isinstance(self.packed, Spool)
        self.packed.append(records)

    def __len__(self) -> int:
        return len(self.packed) // RECORD.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checksums) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, number: int) -> tuple[int, int, bytes]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return RECORD.unpack(self.packed.read(number * RECORD.size, RECORD.size))

    def first_in(self, start: int, end: int) -> tuple[int, int, bytes] | None:
        """Return the first record with an offset from `start` to before `end`, None if there is none."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self[middle][0] < start:
                low = middle + 1
            else:
                high = middle
        return self[low] if low < len(self) and self[low][0] < end else None

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield (offset, length, digest)."""
        for chunk in chunks(self.packed, BATCH * RECORD.size):
            yield from RECORD.iter_unpack(chunk)


def packed(records: Iterable[tuple[int, int, bytes]]) -> Checksums:
    """Pack records that are in order."""
    checksums, left = Checksums(), iter(records)
    while batch := b"".join(RECORD.pack(*record) for record in islice(left, BATCH)):
        checksums.append(batch)
    return checksums


def digest(data: bytes | bytearray | memoryview) -> bytes:
    return xxhash.xxh3_128_digest(data)


NO_RECORD = (0, digest(b""))  # length and digest of the data of a piece that was a hole
