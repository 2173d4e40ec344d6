"""Removes restore points: first what makes them count, then the snapshots of their disks."""

from __future__ import annotations

from typing import Callable

from backup.ceph.errors import ImageGone
from backup.ceph.repository_image import RepositoryImage
from backup.ceph.repository_pool import RepositoryPool
from backup.errors import BackupError
from backup.stored import PointId

from ..own_points.entry import Entry
from ..own_points.in_use import PointInUse
from ..own_points.run_names import point_id, point_name
from .listing import entries
from .names import POINT, WRITING, definition_name


def discard(pool: RepositoryPool, point: PointId, check_stop: Callable[[], None]) -> None:
    """Remove a restore point if it is incomplete. Raises BackupError."""
    _remove(pool, point, False, check_stop)


def withdraw(pool: RepositoryPool, point: PointId, check_stop: Callable[[], None]) -> None:
    """Remove a restore point; success if it is gone. Raises PointInUse, BackupError."""
    _remove(pool, point, True, check_stop)


def _remove(pool: RepositoryPool, point: PointId, complete_too: bool, check_stop: Callable[[], None]) -> None:
    check_stop()
    name, snapshot = definition_name(point.uuid), point_name(point)
    try:
        with pool.opened(name) as definition:
            known = entries(pool, point.uuid, definition.snapshots(), definition.notes())
            entry = known.get(snapshot)
            if not entry or not _uncommitted(pool, point, definition, entry, complete_too):
                return
            for image in entry.images:
                check_stop()
                _remove_of_disk(pool, image.stored, snapshot, check_stop)
            definition.remove_note(POINT + snapshot)
            left = any(key.startswith(POINT) for key in definition.notes()) or definition.snapshots()
    except ImageGone:
        return
    if not left:
        pool.remove(name)


def _uncommitted(
    pool: RepositoryPool, point: PointId, definition: RepositoryImage, entry: Entry, complete_too: bool
) -> bool:
    """Make sure that it does not count, and is not read; return False if it counts and has to stay.

    Who reads it opens the definition image for writing first, then checks that it counts: so whoever began
    before it stopped to count is seen here. Raises PointInUse.
    """
    snapshot = point_name(point)
    has_counted = entry.removed
    if snapshot in definition.snapshots():
        if not entry.removed:
            if not complete_too:
                return False
            _require_unread(pool, point, entry)
            _require_no_clones(pool, point, entry)
            definition.note(POINT + snapshot, entry.marked_removed().packed())
        has_counted = True
        definition.remove_snapshot(snapshot)
    if has_counted:
        _require_unread(pool, point, entry)
    return True


def _require_unread(pool: RepositoryPool, point: PointId, entry: Entry) -> None:
    name = definition_name(point.uuid)
    if len(users := pool.users(name)) > 1:
        message = f"restore points of {entry.domain} are in use at {', '.join(users)}: run {point.run} stays"
        raise PointInUse(message, f"it is removed when they are not; see rbd status {pool.image(name)}")


def _require_no_clones(pool: RepositoryPool, point: PointId, entry: Entry) -> None:
    snapshot = point_name(point)
    for image in entry.images:
        if clones := pool.clones(image.stored, snapshot):
            message = f"{image.target} of {entry.domain}, run {point.run}, has clones: {', '.join(clones)}"
            raise PointInUse(message, f"make them independent: rbd flatten {clones[0]}")


def _remove_of_disk(pool: RepositoryPool, name: str, snapshot: str, check_stop: Callable[[], None]) -> None:
    """Remove a snapshot of a disk's image, and the image with its last one."""
    try:
        with pool.opened(name) as image:
            snapshots = image.snapshots()
            ours = [one for one in snapshots if point_id("", one)]
            if ours[-1:] == [snapshot]:  # without it, the image is no longer what its last snapshot is
                image.note(WRITING, snapshot)
            if snapshot in ours:
                image.remove_snapshot(snapshot)
            left = [one for one in snapshots if one != snapshot]
    except ImageGone:
        return
    if not left:
        try:
            pool.remove(name)
        except BackupError as error:
            check_stop()
            hint = error.hint or f"see rbd status {pool.image(name)}"
            raise BackupError(f"no restore point is left in it, but {error.message}", hint) from error
