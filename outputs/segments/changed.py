"""Plans which segments of a disk have to be read, and describes the result."""

from __future__ import annotations

import time
from array import array
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import merge
from itertools import chain
from typing import Callable, Optional

from backup.model import Extent, Level
from backup.protocols import SnapshotReader, SnapshotSource
from backup.restore_point.checksums import Checksums, packed
from backup.stored import Base, SavedImage
from backup.text import size_text
from backup.transfer.spot_check import spot_check

from .layout import Segments, unpack_times
from .numbers import Numbers
from .tree import DiskFiles

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
        return sum(self.files.segments.extent(number).length for number in self._to_read)

    @property
    def missing(self) -> int:
        """The number of changed segments that were not read completely."""
        return sum(number not in self.files.read for number in self._to_read)

    @property
    def _to_read(self) -> Iterator[int]:
        return (number for number in self.changed if number not in self.files.holes)

    def checksums(self) -> Checksums:
        """Return the checksums of all segments: new ones of those read now, the base's of the others."""
        read, segments = self.files.read, self.files.segments
        unchanged = Numbers(len(segments), every=True)  # the image may have been larger
        for number in chain(self.changed, read):
            unchanged.discard(number)
        before = Checksums(self.base.checksums) if self.base else ()
        old = (one for one in before if one[0] // segments.segment_size in unchanged)
        return packed(merge(old, read.records()))

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
            read_bytes=sum(length for _, length, _ in self.files.read.records()),
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
    target, base = source.disk.target, source.base
    disk = f"{target} ({source.image})"
    why = _full_read_reason(base, reader.size, taken, full_read_interval)
    listing = _Listing(disk, reader.size, log)
    if base and not why:
        # as the base has them, even if a new chain would have others
        segments = Segments(target, reader.size, base.saved.segment_size)
        changed = _changed(reader, base, segments, fast, listing)
        wrong = spot_check(reader, base, _extents(segments, changed.others()))
        if wrong:
            why = (
                f"{wrong.length} bytes at {wrong.offset} differ from what was saved, although Ceph reports "
                "them as unchanged: restore points since the last full read may lack changes"
            )
            log(Level.ERROR, f"{disk}: {why}")
    if not base or why:
        log(Level.INFO, f"{disk}: full read, {why}")
        base, segments = None, Segments.for_image(target, reader.size)
        changed = Numbers(len(segments), every=True)
    times = _times(source.base, changed, len(segments), taken)
    holes = _holes(reader, base, segments, changed, listing)
    return SegmentedDisk(source, DiskFiles(segments, times, reader, holes), changed, base)


def _times(base: Optional[Base], changed: Numbers, count: int, taken: datetime) -> array[int]:
    """Return the time of each segment: a new one of those that changed, the base's of the others."""
    before = unpack_times(base.times) if base else array("q")
    # later than all times of the base, trusted or not, even if the clock was set back
    now = max(int(taken.timestamp() * 1e9), max(before, default=-1) + 1)
    times = before[:count] + array("q", [now]) * (count - len(before))
    for number in changed:
        times[number] = now
    return times


def _full_read_reason(base: Optional[Base], size: int, taken: datetime, interval: timedelta) -> str:
    """Return the reason for a full read, "" if none is needed."""
    if not base:
        return "there is no base snapshot of a previous backup"
    before, now = (Segments("", one, base.saved.segment_size) for one in (base.saved.size, size))
    if not (before.usable and now.usable) or len(unpack_times(base.times)) != len(before):
        return "its segments in the previous backup do not suit it"
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
) -> Numbers:
    changed = Numbers(len(segments))
    if base.saved.size != segments.size:  # from the first segment on that had another length, or none
        changed.update(range(min(base.saved.size, segments.size) // segments.segment_size, len(segments)))
    for extent in listing.with_data("changes", reader.changes(base.snapshot, fast)):
        changed.update(segments.touched(extent))
    return changed


def _extents(segments: Segments, numbers: Numbers) -> Sequence[Extent]:
    """Return the extents of segments, one for those that are adjacent."""
    found = []
    for first, last in numbers.runs():
        start, end = segments.extent(first).offset, segments.extent(last)
        found.append(Extent(start, end.offset + end.length - start))
    return found


def _holes(
    reader: SnapshotReader,
    base: Optional[Base],
    segments: Segments,
    changed: Numbers,
    listing: _Listing,
) -> Numbers:
    """Return the segments without data; an unchanged one has none if the base has no checksum of it."""
    full = Numbers(len(segments))
    for part in _extents(segments, changed):
        for extent in listing.with_data("allocated extents", reader.extents(part)):
            full.update(segments.touched(extent))
    for offset, _, _ in Checksums(base.checksums) if base else ():
        number = offset // segments.segment_size
        if number < len(segments) and number not in changed:  # the image may have been larger
            full.add(number)
    holes = full.others()
    if len(segments) and not segments.can_be_link(len(segments) - 1):
        holes.discard(len(segments) - 1)
    return holes
