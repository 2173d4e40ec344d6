"""One disk in a backup of segments: which of them have to be read, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import merge
from itertools import groupby
from typing import Callable, Optional

from backup.model import Extent, Level
from backup.protocols import SnapshotReader, SnapshotSource
from backup.restore_point.checksums import Checksums, packed
from backup.stored import Base, SavedImage
from backup.text import size_text
from backup.transfer.spot_check import spot_check

from .files import DiskFiles
from .layout import Segments, unpack_times

Tell = Callable[[Level, str], None]

LISTING_INTERVAL = 60.0  # seconds between two reports of how far a listing is


@dataclass(frozen=True)
class SegmentedDisk:
    """A disk's segments, and the numbers of those that may differ from the base's."""

    source: SnapshotSource
    files: DiskFiles
    changed: Collection[int]
    base: Optional[Base]

    @property
    def target(self) -> str:
        return self.source.disk.target

    @property
    def changed_bytes(self) -> int:
        changed = set(self.changed) - set(self.files.holes)
        return sum(self.files.segments.extent(number).length for number in changed)

    @property
    def missing(self) -> int:
        """How many of the changed segments were not read as a whole."""
        return len(set(self.changed) - set(self.files.read) - set(self.files.holes))

    def checksums(self) -> Checksums:
        """Give those of all segments: of what was read now, and the base's of everything else."""
        read, segments = self.files.read, self.files.segments
        before = _checksums(self.base) if self.base else ()  # of an image that may have been larger
        kept = {*range(len(segments))} - {*read} - {*self.changed}
        old = (one for one in before if one[0] // segments.segment_size in kept)
        new = (one for number in sorted(read) for one in read[number])
        return packed(merge(old, new))

    def saved(self, checksums: Checksums, taken: datetime, seconds: float, restore_id: str) -> SavedImage:
        reader = self.files.reader
        return SavedImage(
            target=self.target,
            image=str(self.source.image),
            size=reader.size,
            data_bytes=sum(length for _, length, _ in checksums),
            stored_bytes=0,
            seconds=seconds,
            restore_id=restore_id,
            layout=reader.layout,
            read_bytes=sum(length for one in self.files.read.values() for _, length, _ in one),
            source=reader.source,
            segment_size=self.files.segments.segment_size,
            full_read=self.base.saved.full_read if self.base else taken.isoformat(),
        )


def planned(
    source: SnapshotSource,
    reader: SnapshotReader,
    taken: datetime,
    patience: timedelta,
    fast: bool,
    tell: Tell,
) -> SegmentedDisk:
    """Find out what has to be read: all of it, where there is no base that can be trusted.

    `patience` is how long after all was read it is read again. Raises BackupError.
    """
    segments = Segments.of(source.disk.target, reader.size)
    everything = range(len(segments))
    base = source.base
    why = _unfit(base, segments, taken, patience)
    listing = _Listing(f"{source.disk.target} ({source.image})", reader.size, tell)
    changed: Collection[int] = everything
    if base and not why:
        changed = _changed(reader, base, segments, fast, listing)
        unchanged = [segments.extent(number) for number in everything if number not in changed]
        wrong = spot_check(reader, base, unchanged)
        if wrong:
            why = (
                f"{wrong.length} bytes at {wrong.offset} are not as they were saved, although Ceph says that "
                "they have not changed: restore points since the last full read may lack changes"
            )
            tell(Level.ERROR, f"{source.disk.target} ({source.image}): {why}")
    if not base or why:
        tell(Level.INFO, f"{source.disk.target} ({source.image}) is read as a whole: {why}")
        base, changed = None, everything
    before = unpack_times(base.times) if base else ()
    # later than all that there were, trusted or not, even if the clock was set back
    known = unpack_times(source.base.times) if source.base else ()
    now = max(int(taken.timestamp() * 1e9), *(time + 1 for time in known), 0)
    times = [now if number in changed else before[number] for number in everything]
    holes = _holes(reader, base, segments, changed, listing)
    return SegmentedDisk(source, DiskFiles(segments, times, reader, holes), changed, base)


def _unfit(base: Optional[Base], segments: Segments, taken: datetime, patience: timedelta) -> str:
    """Tell why everything has to be read, "" if it need not be."""
    if not base:
        return "there is no snapshot of an earlier backup to compare it with"
    before = Segments(segments.target, base.saved.size, base.saved.segment_size)
    if base.saved.segment_size != segments.segment_size or len(unpack_times(base.times)) != len(before):
        return "its segments have another size now"
    # whichever was first: a clock that was wrong once must not put it off for years
    if patience and abs(taken - datetime.fromisoformat(base.saved.full_read)) >= patience:
        return f"it was last so on {base.saved.full_read[:10]} (FULL_READ_DAYS)"
    return ""


class _Listing:
    """Reports how far what takes long is listed: object by object, 16 TiB take five minutes."""

    def __init__(self, disk: str, size: int, tell: Tell) -> None:
        self._disk = disk
        self._size = size
        self._tell = tell
        self._reported = time.monotonic()

    def with_data(self, what: str, extents: Generator[Extent, None, None]) -> Iterator[Extent]:
        """Yield those that have bytes."""
        with closing(extents):
            for extent in extents:
                if extent.length:
                    yield extent
                elif time.monotonic() >= self._reported + LISTING_INTERVAL:
                    self._reported = time.monotonic()
                    listed = f"{size_text(extent.offset)} of {size_text(self._size)}"
                    self._tell(Level.INFO, f"{self._disk}: listing {what}, {listed}")


def _changed(
    reader: SnapshotReader, base: Base, segments: Segments, fast: bool, listing: _Listing
) -> Collection[int]:
    before = Segments(segments.target, base.saved.size, base.saved.segment_size)
    changed = {number for number in range(len(segments)) if before.extent(number) != segments.extent(number)}
    for extent in listing.with_data("what has changed", reader.changes(base.snapshot, fast)):
        changed.update(segments.touched(extent))
    return changed


def _holes(
    reader: SnapshotReader,
    base: Optional[Base],
    segments: Segments,
    changed: Collection[int],
    listing: _Listing,
) -> Collection[int]:
    """Tell which segments have no data: of those that have not changed, the ones of which none was saved."""
    full: set[int] = set()
    for first, last in _runs(changed):
        start, end = segments.extent(first).offset, segments.extent(last)
        extents = reader.extents(Extent(start, end.offset + end.length - start))
        for extent in listing.with_data("what is allocated", extents):
            full.update(segments.touched(extent))
    if base:
        saved = {offset // segments.segment_size for offset, _, _ in _checksums(base)}
        full |= saved - set(changed)
    return {n for n in range(len(segments)) if n not in full and segments.can_be_link(n)}


def _checksums(base: Base) -> Checksums:
    return Checksums(bytearray(base.checksums))


def _runs(numbers: Collection[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of each run of numbers that follow one another."""
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run_numbers = [number for _, number in run]
        yield run_numbers[0], run_numbers[-1]
