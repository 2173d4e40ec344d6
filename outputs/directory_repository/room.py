"""Whether the directory has room for what is about to be written."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Callable, Optional

from backup.errors import BackupError
from backup.protocols import SnapshotReader
from backup.text import size_text

from ..own_points.changed_parts import ChangedParts
from .errors import named_errors

OVERHEAD = 1 << 20  # bytes, and a thousandth: the tables of a qcow2 file, the manifest


def require_room(directory: Path, size: int, what: str) -> None:
    """Raise BackupError unless the file system has room for so many bytes."""
    with named_errors("read", directory):
        found = os.statvfs(directory)
    free, needed = found.f_bavail * found.f_frsize, size + size // 1000 + OVERHEAD
    if free < needed:
        message = f"{what} needs {size_text(needed)}, {directory} has room for {size_text(free)}"
        raise BackupError(message, "make room there, or keep fewer restore points (KEEP_LAST)")


def bytes_to_write(
    reader: SnapshotReader, parts: Optional[ChangedParts], progress: Callable[[int], None]
) -> int:
    """Return how much of a snapshot will be written at the most: what has changed, or all that is allocated.

    `progress` is called often, with 0: listing a large image takes minutes. Raises BackupError.
    """
    if parts is not None:
        return sum(parts.part(number).length for number in parts)
    found = 0
    with closing(reader.extents()) as extents:
        for extent in extents:
            progress(0)
            found += extent.length
    return found
