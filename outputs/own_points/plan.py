"""Which parts of an image an incremental backup reads, and whether it may."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Callable

from backup.model import Extent
from backup.protocols import SnapshotReader
from backup.stored import Base
from backup.transfer.spot_check import spot_check

from .changed_parts import ChangedParts


def full_read_due(base: Base, taken: datetime, interval: timedelta) -> str:
    """Return why a full read is due, "" if it is not; `interval`: 0 for never."""
    # abs: a clock that was wrong once must not postpone the full read for years
    if interval and abs(taken - datetime.fromisoformat(base.saved.full_read)) >= interval:
        return f"the last one was on {base.saved.full_read[:10]} (FULL_READ_DAYS)"
    return ""


def changed_parts(
    reader: SnapshotReader, base: Base, fast_diff: bool, progress: Callable[[int], None]
) -> ChangedParts:
    """List what has changed since the base snapshot.

    `progress` is called often, with 0: listing a large image takes minutes. Raises BackupError.
    """
    parts = ChangedParts(reader.size)
    if base.saved.size != reader.size:
        parts.add_pieces([tail(min(base.saved.size, reader.size), reader.size)])
    for extent in reader.changes(base.snapshot, fast_diff):
        progress(0)
        parts.add(extent)
    return parts


def wrong_list(reader: SnapshotReader, base: Base, parts: ChangedParts) -> str:
    """Read a sample of what is listed as unchanged; return what is wrong with the list, "" if nothing is."""
    wrong = spot_check(reader, base, parts.unchanged())
    if not wrong:
        return ""
    return (
        f"{wrong.length} bytes at {wrong.offset} differ from what was saved, although Ceph reports "
        "them as unchanged: restore points since the last full read may lack changes"
    )


def tail(start: int, size: int) -> Extent:
    """Return what follows `start`, and the piece that it is in."""
    return Extent(start, max(size - start, 1))
