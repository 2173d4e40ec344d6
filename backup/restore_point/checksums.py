"""Checksums of an image's bytes, computed while they are streamed: verification compares with them.

A record per read: offset (8 bytes), length (4 bytes), both big-endian, and the xxh3-128 digest (16 bytes) of
the bytes. No read crosses a multiple of 4 MiB, and each such piece of the image has at most one record. What
has none was a hole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import xxhash

ALGORITHM = "xxh3-128"
RECORD = struct.Struct(">QI16s")


@dataclass
class Checksums:
    """The records of one image, in ascending order."""

    packed: bytearray = field(default_factory=bytearray)

    def add(self, offset: int, data: bytes) -> None:
        self.packed += RECORD.pack(offset, len(data), digest(data))

    def __len__(self) -> int:
        return len(self.packed) // RECORD.size

    def __getitem__(self, number: int) -> tuple[int, int, bytes]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return RECORD.unpack_from(self.packed, number * RECORD.size)

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
        return RECORD.iter_unpack(self.packed)


def packed(records: Iterable[tuple[int, int, bytes]]) -> Checksums:
    """Pack records that are in order."""
    return Checksums(bytearray().join(RECORD.pack(*record) for record in records))


def digest(data: bytes | bytearray | memoryview) -> bytes:
    return xxhash.xxh3_128_digest(data)


NO_RECORD = (0, digest(b""))  # length and digest of the data of a piece that was a hole
