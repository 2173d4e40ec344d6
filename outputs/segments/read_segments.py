"""The segments that were read, with their checksums, in whatever order they were read."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from backup.restore_point.checksums import RECORD, Checksums
from backup.system.spool import Spool, whole
from backup.transfer import backup_stream

from .layout import Segments
from .numbers import Numbers


class ReadSegments(Collection[int]):
    """The numbers of the segments that were read completely. The records of each have a place in a spool."""

    def __init__(self, segments: Segments) -> None:
        self._numbers = Numbers(len(segments))
        self._place = RECORD.size * (segments.segment_size // backup_stream.READ_SIZE + 1)  # bytes
        self._records = Spool()

    def keep(self, number: int, checksums: Checksums) -> None:
        """Keep the checksums of a segment that was read completely, perhaps for a second time."""
        packed = whole(checksums.packed)
        self._records.write(number * self._place, packed + bytes(self._place - len(packed)))
        self._numbers.add(number)

    def records(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the checksums of all, in the order of the image: offset, length, digest."""
        for number in self._numbers:
            packed = self._records.read(number * self._place, self._place)
            for record in RECORD.iter_unpack(packed):
                if record[1]:  # otherwise the place is not filled
                    yield record

    def clear(self) -> None:
        """Forget them all."""
        self._numbers.clear()

    def __contains__(self, number: object) -> bool:
        return number in self._numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)
