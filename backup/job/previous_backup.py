"""The previous backup of a domain, with its base snapshots, on which an incremental backup builds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Callable, Optional

from ..ceph.cluster import Cluster
from ..ceph.errors import ClusterError, LockHeld
from ..model import Domain, Image, Level, image_named
from ..protocols import Output, Reporter
from ..stored import Base, SavedDomain, SnapshotId, StoredPoint
from ..system.stop_request import StopRequest
from ..system.time_limit import awaited
from .domain_lock import CLEANUP, DomainLock, lock_at
from .leftovers import base_prefix, owned_prefix, remove_leftovers, run_of
from .snapshots import DiskSnapshot


class PreviousBackup:
    """The previous backup of a domain's images; a thread searches for it while the snapshots are made.

    It is the newest restore point in the repository with a snapshot that still exists: both must be of the
    same run, or the image gets a full read. Only for the holder of the domain's lock.
    """

    def __init__(
        self,
        snapshots: Sequence[DiskSnapshot],
        domain: Domain,
        output: Output,
        known: Sequence[StoredPoint],
        check_stop: Callable[[], None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`known` are the domain's restore points as the run listed them. `warn` is called from a thread."""
        self._snapshots = tuple(snapshots)
        self._domain = domain
        self._output = output
        self._known = known
        self._check_stop = check_stop
        self._warn = warn
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="base")
        self._found = self._thread.submit(self._find)

    def __enter__(self) -> PreviousBackup:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)

    def base_of(self, snapshot: DiskSnapshot) -> Optional[Base]:
        """Return an image's base, None for a full read. Waits for the search; raises BackupError."""
        return self._search()[1].get(snapshot)

    def remove_dropped(
        self, reporter: Reporter, lock: DomainLock, require_lock: Callable[[], None] = lambda: None
    ) -> None:
        """Remove the base snapshots of images that the domain no longer has, or that are excluded by now.

        `lock` is held. In other places the domain's lock is taken for it: if a run whose settings do not
        exclude the image is saving it, they stay. `require_lock` as in `remove_leftovers`.
        Raises BackupError.
        """
        saved, _ = self._search()
        clusters = {one.cluster.fsid: one.cluster for one in self._snapshots}
        current = {_id(one) for one in self._snapshots}
        for image in saved.images if saved else ():
            cluster, place = clusters.get(image.source.cluster), image_named(image.image)
            if cluster and place and (image.source.cluster, image.source.image) not in current:
                place = replace(place, id=image.source.image)
                if lock.covers(cluster, place):
                    self._remove(cluster, place, reporter, require_lock)
                else:
                    self._remove_locked(cluster, place, reporter, lock.duration)

    def _remove_locked(self, cluster: Cluster, image: Image, reporter: Reporter, duration: int) -> None:
        lost = StopRequest()  # for this lock only
        lock = lock_at(cluster, image.pool, image.namespace, self._domain.uuid, duration, CLEANUP)

        def require_lock() -> None:
            self._check_stop()
            lost.check_leased()

        with ExitStack() as stack:
            try:
                stack.enter_context(lock.locked(lost, reporter, self._domain.name))
            except (LockHeld, ClusterError) as error:
                if not error.transient:
                    raise
                level = Level.INFO if isinstance(error, LockHeld) else Level.WARNING
                text = f"base snapshots of {image}, which is no longer backed up, stay: {error.message}"
                reporter.message(level, self._domain.name, text)
                return
            self._remove(cluster, image, reporter, require_lock)

    def _remove(
        self, cluster: Cluster, image: Image, reporter: Reporter, require_lock: Callable[[], None]
    ) -> None:
        remove_leftovers(cluster, image, self._domain, reporter, with_bases=True, require_lock=require_lock)

    def _search(self) -> tuple[Optional[SavedDomain], Mapping[DiskSnapshot, Base]]:
        """Wait for the search. Signals are handled in this thread, but only when it wakes up."""
        return awaited(self._found, math.inf)

    def _find(self) -> tuple[Optional[SavedDomain], Mapping[DiskSnapshot, Base]]:
        uuid = self._domain.uuid
        ours = {snapshot: _ours(snapshot, uuid) for snapshot in self._snapshots}
        runs = {run_of(name) for names in ours.values() for name in names}
        saved = self._output.base(uuid, runs, self._known, self._check_stop, self._warn) if runs else None
        found = {one: _base(one, names, saved) for one, names in ours.items()} if saved else {}
        return saved, {snapshot: base for snapshot, base in found.items() if base}


def _id(snapshot: DiskSnapshot) -> tuple[str, str]:
    return snapshot.cluster.fsid, snapshot.image.id or snapshot.image.name


def _ours(snapshot: DiskSnapshot, uuid: str) -> Mapping[str, int]:
    """Return the ids of our snapshots of the image by name: base snapshots and leftovers.

    The one that has the name of the snapshot to be made is of an attempt that crashed. It has to be removed,
    even if the restore point of that attempt is complete.
    """
    prefixes = (owned_prefix(uuid), base_prefix(uuid))
    every = snapshot.cluster.snapshot_ids(snapshot.image)
    found = {name: number for name, number in every.items() if name.startswith(prefixes)}
    found.pop(snapshot.name, None)
    return found


def _base(snapshot: DiskSnapshot, ours: Mapping[str, int], saved: SavedDomain) -> Optional[Base]:
    sources = {SnapshotId(*_id(snapshot), number): name for name, number in ours.items()}
    for one in saved.images:
        known = one.target in saved.checksums  # another version may have written other checksums
        if known and one.target == snapshot.disk.target and one.source in sources:
            times = saved.times.get(one.target, b"")
            return Base(sources[one.source], one, saved.checksums[one.target], times)
    return None
