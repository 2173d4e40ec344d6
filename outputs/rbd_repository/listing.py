"""Lists the restore points of an RBD repository: the snapshots of its images, and the notes about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Callable

from backup.ceph.errors import ImageGone
from backup.ceph.repository_pool import ImageState, RepositoryPool
from backup.errors import BackupError
from backup.restore_point import manifest
from backup.stored import PointId, StoredPoint

from ..own_points.entry import Entry, entry_of_manifest, guessed_entry, unpacked
from ..own_points.order import in_order
from ..own_points.run_names import point_id
from .definition import read_definition
from .names import POINT, defined_uuid, definition_name, disk_name, restore_id, split_id

AT_A_TIME = 16  # domains that are listed at the same time


def restore_points(pool: RepositoryPool, check_stop: Callable[[], None]) -> Sequence[StoredPoint]:
    """List all restore points, oldest first, those of the future before them. Raises BackupError."""
    uuids = [uuid for name in pool.names() if (uuid := defined_uuid(name))]
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="points") as threads:
        of_domains = list(threads.map(partial(_of_domain, pool, check_stop), uuids))
    return in_order(chain.from_iterable(of_domains))


def points_of(pool: RepositoryPool, uuid: str, check_stop: Callable[[], None]) -> Sequence[StoredPoint]:
    """List the restore points of a domain, in the same order. Raises BackupError."""
    return in_order(_of_domain(pool, check_stop, uuid))


def entries(
    pool: RepositoryPool, uuid: str, snapshots: Sequence[str], notes: Mapping[str, str]
) -> Mapping[str, Entry]:
    """Return the entries of a domain's restore points, by their snapshots.

    `snapshots` and `notes` are the definition image's. Where a note is missing or damaged, the manifest has
    what it had. Raises BackupError if that cannot be read now.
    """
    noted = {key[len(POINT) :]: text for key, text in notes.items() if key.startswith(POINT)}
    ours = [one for one in dict.fromkeys([*noted, *snapshots]) if point_id(uuid, one)]
    return {one: unpacked(noted.get(one, "")) or _from_manifest(pool, uuid, one) for one in ours}


def _from_manifest(pool: RepositoryPool, uuid: str, snapshot: str) -> Entry:
    try:
        with pool.reader(definition_name(uuid), snapshot) as reader:
            saved = manifest.unpack(read_definition(reader))
        return entry_of_manifest(saved, lambda identifier: split_id(identifier)[0])
    except BackupError as error:
        if error.transient:
            raise
        prefix = disk_name(uuid, "")
        targets = {name: name[len(prefix) :] for name in pool.names() if name.startswith(prefix)}
        targets.pop(definition_name(uuid), None)
        return guessed_entry(uuid, snapshot, targets)


def _of_domain(pool: RepositoryPool, check_stop: Callable[[], None], uuid: str) -> Sequence[StoredPoint]:
    check_stop()
    definition = _state(pool, definition_name(uuid))
    known = entries(pool, uuid, definition.snapshots, definition.notes)
    stored = {image.stored for entry in known.values() for image in entry.images}
    snapshots = {name: _state(pool, name).snapshots for name in stored}

    def listed(point: PointId, snapshot: str, entry: Entry) -> StoredPoint:
        counts = snapshot in definition.snapshots and not entry.removed
        return entry.listed(
            point,
            lambda name: restore_id(name, snapshot) if snapshot in snapshots[name] else "",
            snapshot if counts else "",
        )

    return [
        listed(point, snapshot, entry)
        for snapshot, entry in known.items()
        if (point := point_id(uuid, snapshot))
    ]


def _state(pool: RepositoryPool, name: str) -> ImageState:
    """Return what an image has, nothing if it is gone."""
    try:
        return pool.state(name)
    except ImageGone:
        return ImageState((), {})
