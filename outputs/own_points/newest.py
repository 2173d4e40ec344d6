"""The newest restore point that a backup can build on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Callable, Optional

from backup.errors import BackupError
from backup.restore_point import manifest
from backup.restore_point.find import with_current_ids
from backup.stored import Packed, SavedDomain, StoredPoint


def newest(
    points: Sequence[StoredPoint],
    runs: Optional[Collection[str]],
    read: Callable[[StoredPoint], Packed],
    warn: Callable[[str], None],
) -> Optional[SavedDomain]:
    """Read the manifest of the newest complete restore point of these runs, of any if it is None.

    `points` are a domain's, oldest first. A damaged one causes a warning, and the one before is read. Raises
    BackupError if none can be read now.
    """
    for point in reversed(points):
        if point.manifest_id and (runs is None or point.id.run in runs):
            try:
                return with_current_ids(manifest.unpack(read(point)), point)
            except BackupError as error:
                if error.transient:
                    raise
                taken = f"{point.taken:%Y-%m-%d %H:%M:%S} UTC"
                warn(f"cannot build on the restore point of {taken}, run {point.id.run}: {error}")
    return None
