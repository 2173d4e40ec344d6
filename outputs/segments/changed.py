"""Plans which segments of a disk have to be read, and describes the result."""

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

Log = Callable[[Level, str], None]

LISTING_INTERVAL = 60.0  # seconds between two progress reports of a listing


@dataclass(frozen=True)
class SegmentedDisk:
    """A disk's segments, and the numbers of those that may differ from the base."""

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
        """The number of changed segments that were not read completely."""
        return len(set(self.changed) - set(self.files.read) - set(self.files.holes))

    def checksums(self) -> Checksums:
        """Return the checksums of all segments: new ones of those read now, the base's of the others."""
        read, segments = self.files.read, self.files.segments
        before = _checksums(self.base) if self.base else ()  # the image may have been larger
        unchanged = {*range(len(segments))} - {*read} - {*self.changed}
        old = (one for one in before if one[0] // segments.segment_size in unchanged)
        new = (one for number in sorted(read) for one in read[number])
        return packed(merge(old, new))

    def saved(self, checksums: Checksums, taken: datetime, seconds: float) -> SavedImage:
        """Return the saved image, as its manifest has it: without the id of the snapshot they are both in."""
        reader = self.files.reader
        return SavedImage(
            target=self.target,
            image=str(self.source.image),
            size=reader.size,
            data_bytes=sum(length for _, length, _ in checksums),
            stored_bytes=0,
            seconds=seconds,
            restore_id="",
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
    full_read_interval: timedelta,
    fast: bool,
    log: Log,
) -> SegmentedDisk:
    """Determine the segments that have to be read: all of them without a base that can be trusted.

    `full_read_interval`: the time after which a full read is due, 0 for never. Raises BackupError.
    """
    segments = Segments.for_image(source.disk.target, reader.size)
    everything = range(len(segments))
    base = source.base
    disk = f"{source.disk.target} ({source.image})"
    why = _full_read_reason(base, segments, taken, full_read_interval)
    listing = _Listing(disk, reader.size, log)
    changed: Collection[int] = everything
    if base and not why:
        changed = _changed(reader, base, segments, fast, listing)
        unchanged = [segments.extent(number) for number in everything if number not in changed]
        wrong = spot_check(reader, base, unchanged)
        if wrong:
            why = (
                f"{wrong.length} bytes at {wrong.offset} differ from what was saved, although Ceph reports "
                "them as unchanged: restore points since the last full read may lack changes"
            )
            log(Level.ERROR, f"{disk}: {why}")
    if not base or why:
        log(Level.INFO, f"{disk}: full read, {why}")
        base, changed = None, everything
    before = unpack_times(base.times) if base else ()
    # later than all times of the base, trusted or not, even if the clock was set back
    known = unpack_times(source.base.times) if source.base else ()
    now = max(int(taken.timestamp() * 1e9), *(time + 1 for time in known), 0)
    times = [now if number in changed else before[number] for number in everything]
    holes = _holes(reader, base, segments, changed, listing)
    return SegmentedDisk(source, DiskFiles(segments, times, reader, holes), changed, base)


def _full_read_reason(base: Optional[Base], segments: Segments, taken: datetime, interval: timedelta) -> str:
    """Return the reason for a full read, "" if none is needed."""
    if not base:
        return "there is no base snapshot of a previous backup"
    before = Segments(segments.target, base.saved.size, base.saved.segment_size)
    if base.saved.segment_size != segments.segment_size or len(unpack_times(base.times)) != len(before):
        return "the segment size has changed"
    # abs: a clock that was wrong once must not postpone the full read for years
    if interval and abs(taken - datetime.fromisoformat(base.saved.full_read)) >= interval:
        return f"the last one was on {base.saved.full_read[:10]} (FULL_READ_DAYS)"
    return ""


class _Listing:
    """Reports the progress of long listings: object by object, 16 TiB take five minutes."""

    def __init__(self, disk: str, size: int, log: Log) -> None:
        self._disk = disk
        self._size = size
        self._log = log
        self._reported = time.monotonic()

    def with_data(self, what: str, extents: Generator[Extent, None, None]) -> Iterator[Extent]:
        """Yield the extents that are not empty."""
        with closing(extents):
            for extent in extents:
                if extent.length:
                    yield extent
                elif time.monotonic() >= self._reported + LISTING_INTERVAL:
                    self._reported = time.monotonic()
                    listed = f"{size_text(extent.offset)} of {size_text(self._size)}"
                    self._log(Level.INFO, f"{self._disk}: listing {what}, {listed}")


def _changed(
    reader: SnapshotReader, base: Base, segments: Segments, fast: bool, listing: _Listing
) -> Collection[int]:
    before = Segments(segments.target, base.saved.size, base.saved.segment_size)
    changed = {number for number in range(len(segments)) if before.extent(number) != segments.extent(number)}
    for extent in listing.with_data("changes", reader.changes(base.snapshot, fast)):
        changed.update(segments.touched(extent))
    return changed


def _holes(
    reader: SnapshotReader,
    base: Optional[Base],
    segments: Segments,
    changed: Collection[int],
    listing: _Listing,
) -> Collection[int]:
    """Return the segments without data; an unchanged one has none if the base has no checksum of it."""
    full: set[int] = set()
    for first, last in _runs(changed):
        start, end = segments.extent(first).offset, segments.extent(last)
        extents = reader.extents(Extent(start, end.offset + end.length - start))
        for extent in listing.with_data("allocated extents", extents):
            full.update(segments.touched(extent))
    if base:
        saved = {offset // segments.segment_size for offset, _, _ in _checksums(base)}
        full |= saved - set(changed)
    return {n for n in range(len(segments)) if n not in full and segments.can_be_link(n)}


def _checksums(base: Base) -> Checksums:
    return Checksums(bytearray(base.checksums))


def _runs(numbers: Collection[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of each run of consecutive numbers."""
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run_numbers = [number for _, number in run]
        yield run_numbers[0], run_numbers[-1]
