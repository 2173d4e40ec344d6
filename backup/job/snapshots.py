"""A domain's snapshots: all created at once, all removed in the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Callable, Optional

from ..ceph.cluster import Cluster
from ..ceph.clusters import Clusters
from ..errors import TransientError
from ..model import Disk, Domain, Image
from ..protocols import Reporter, SnapshotReader, SnapshotSource
from ..stored import Base
from ..system.concurrency_limit import Slots
from ..system.undo import undone_by
from .leftovers import base_prefix, leftovers, owned_prefix, run_of

STOP_POLL = 0.1  # seconds between two checks whether the job has to stop


@dataclass(frozen=True)
class DiskSnapshot:
    """The snapshot of one disk's image, made or to be made. Satisfies protocols.SnapshotSource.

    `targets` are those of all disks that have the image. `base_of` finds its base in the previous backup.
    """

    disk: Disk
    image: Image
    cluster: Cluster
    name: str
    targets: tuple[str, ...] = ()
    base_of: Optional[Callable[[DiskSnapshot], Optional[Base]]] = field(default=None, compare=False)

    @property
    def base(self) -> Optional[Base]:
        return self.base_of(self) if self.base_of else None

    @property
    def titled(self) -> str:
        """The image, with the owner of its lock, who makes the snapshot."""
        owner = self.cluster.lock_owner(self.image)
        return f"{self.image} (locked by {owner})" if owner else str(self.image)

    def create(self) -> None:
        self.cluster.create_snapshot(self.image, self.name)

    def remove(self) -> None:
        self.cluster.remove_snapshot(self.image, self.name)

    def open(self) -> AbstractContextManager[SnapshotReader]:
        return self.cluster.reader(self.image, self.name)


@dataclass(frozen=True)
class ImageUse:
    """Who has an image open for writing: the addresses of all, and how many are, or have to be, the domain's.

    `own` is at most how many of them are its QEMU, or the kernel for it; `required`: one of them has to be.
    """

    image: Image
    addresses: Sequence[str]
    own: int
    required: bool

    @property
    def by_others(self) -> bool:
        return len(self.addresses) > self.own

    @property
    def missing(self) -> bool:
        """Whether the running domain, which has to have it open, does not."""
        return self.required and not self.addresses


def _use(snapshot: DiskSnapshot, addresses: Sequence[str], domain: Domain) -> ImageUse:
    disks = [one for one in domain.disks if domain.state.active and one.target in snapshot.targets]
    clients = {one.client for one in disks if one.client}  # a mapped device is one, for whatever disks
    return ImageUse(snapshot.image, addresses, len(clients), any(one.written for one in disks))


def not_open(images: Sequence[Image], domain: Domain) -> TransientError:
    """Return the error that no client has the images open to which a running domain writes."""
    hint = (
        f"what its QEMU writes to is another image, or it was cut off: rbd status {images[0]}; was an image "
        "renamed while the guest ran? does CEPH_CONF name another cluster than its definition? is its client "
        "in ceph osd blocklist ls?"
    )
    message = f"{enumerated(images)} open in no client, although the domain is {domain.state.value}"
    return TransientError(message, hint)


def enumerated(images: Sequence[Image]) -> str:
    """Name images as the subject of a sentence, with its verb."""
    return f"{', '.join(map(str, images))} {'is' if len(images) == 1 else 'are'}"


def prepared(
    domain: Domain, clusters: Clusters, run: str, alive: Callable[[str], None] = lambda _text: None
) -> Sequence[DiskSnapshot]:
    """Return the snapshots of all images of the domain that are to be saved; none is made yet.

    One snapshot serves all disks with the same image. `alive` is called for each disk, as a sign of life.
    Raises ClusterError if an image is missing or cannot have snapshots.
    """
    name = owned_prefix(domain.uuid) + run
    found: dict[tuple[str, ...], DiskSnapshot] = {}
    for disk in domain.disks:
        if disk.image:
            alive(f"{disk.target}: looking up image {disk.image}")
            cluster = clusters.at(disk.address)
            image = cluster.identified(disk.image)
            key = (cluster.fsid, image.place, image.id or image.name)
            first = found.get(key) or DiskSnapshot(disk, image, cluster, name)
            found[key] = replace(first, targets=(*first.targets, disk.target))
    return tuple(found.values())


class DomainSnapshots:
    """The snapshots of all of a domain's images."""

    def __init__(self, snapshots: Sequence[DiskSnapshot], deletions: Slots) -> None:
        self.snapshots = tuple(snapshots)
        self._deletions = deletions
        self._started: list[tuple[DiskSnapshot, Future[None]]] = []
        self._removals: dict[SnapshotSource, Future[None]] = {}
        self._threads = ThreadPoolExecutor(max(1, len(snapshots)), thread_name_prefix="snapshot")

    @contextmanager
    def images_open(self) -> Iterator[None]:
        """Keep all images open during the block: then one round of the monitors makes all snapshots.

        Opening takes a different time for each, and one that misses a round waits a second for the next.
        Creations that are under way at the end are waited for. Raises ClusterError if a pool is full: the
        guest would be quiesced for nothing.
        """
        pools = [
            (one.cluster, pool)
            for one in self.snapshots
            for pool in (one.image.pool, one.image.data_pool)
            if pool
        ]
        for cluster, pool in dict.fromkeys(pools):
            cluster.retry.call(partial(cluster.require_not_full, pool))
        managers = [one.cluster.image_open(one.image) for one in self.snapshots]
        openings = [self._threads.submit(manager.__enter__) for manager in managers]
        with ExitStack() as stack:
            wait(openings)
            opened = [one for one, opening in zip(managers, openings) if not opening.exception()]
            stack.callback(self._close, opened)
            for opening in openings:
                opening.result()
            try:
                yield
            finally:
                wait([future for _, future in self._started])

    def _close(self, opened: Sequence[AbstractContextManager[None]]) -> None:
        """Close images all at once, as each takes a timeout if the cluster does not answer."""
        closings = [self._threads.submit(one.__exit__, None, None, None) for one in opened]
        wait(closings)
        for closing in closings:
            closing.result()

    def create(self, seconds: float, check_stop: Callable[[], None]) -> None:
        """Make all of them in parallel, as each takes about a second. Raises the first error.

        Also raises if some are missing after `seconds`; creations still under way are waited for before
        the removal.
        """
        deadline = time.monotonic() + seconds
        for snapshot in self.snapshots:  # one by one: those begun are removed even if no thread starts
            self._begin_creation(snapshot)
        pending = {future for _, future in self._started}
        while pending:
            done, pending = wait(pending, STOP_POLL, FIRST_EXCEPTION)
            for future in done:
                future.result()
            check_stop()
            if pending and time.monotonic() > deadline:
                late = ", ".join(one.titled for one, future in self._started if future in pending)
                message = f"the snapshots of {late} were not made within {seconds:.0f} s"
                raise TransientError(message, "is the cluster healthy (ceph status)? see FREEZE_TIMEOUT")

    def _begin_creation(self, snapshot: DiskSnapshot) -> None:
        """Make it in a thread, and record that it may exist.

        If no further thread can be started, `submit` raises and leaves the work to the existing threads.
        """
        creation: Future[None] = Future()
        self._started.append((snapshot, creation))
        try:
            self._threads.submit(_create, snapshot, creation)
        except BaseException:  # no further thread, a stop, no memory
            if creation.cancel():  # no thread has begun it, and none will
                self._started.pop()
            raise

    def uses(self, domain: Domain) -> Sequence[ImageUse]:
        """Return who has each image open for writing; `domain` is as it is now."""
        found = self._threads.map(lambda one: one.cluster.watchers(one.image), self.snapshots)
        return [_use(one, addresses, domain) for one, addresses in zip(self.snapshots, found)]

    def keep_as_bases(self, domain: Domain, require_lock: Callable[[], None] = lambda: None) -> None:
        """Rename them to base snapshots for the next run, and remove this run's base snapshots.

        One that cannot be renamed stays too, and serves the next run under its present name. `require_lock`
        raises if the lock was lost, as another node may be making snapshots. Raises the first error.
        """
        steps = [
            self._threads.submit(self._keep_as_base, one, domain, require_lock) for one, _ in self._started
        ]
        self._started = []
        wait(steps)
        for step in steps:
            step.result()

    def _keep_as_base(self, snapshot: DiskSnapshot, domain: Domain, require_lock: Callable[[], None]) -> None:
        name = base_prefix(domain.uuid) + run_of(snapshot.name)
        snapshot.cluster.rename_snapshot(snapshot.image, snapshot.name, name)
        found = leftovers(snapshot.cluster, snapshot.image, domain, with_bases=True)
        require_lock()  # the listing may have taken long
        for old in found:
            if old != name:
                with self._deletions.one():
                    snapshot.cluster.remove_snapshot(snapshot.image, old)

    def release(self, source: SnapshotSource) -> None:
        """Begin to remove one that is no longer needed; `remove` raises its error."""
        for snapshot, _ in self._started:
            if snapshot is source:
                self._begin_removal(snapshot)

    def remove(self) -> None:
        """Wait for creations under way, then remove all that may exist, and raise the first error."""
        wait([future for _, future in self._started])
        try:  # in the existing threads: there may be no memory for others
            for snapshot, _ in self._started:
                self._begin_removal(snapshot)
        finally:
            self._threads.shutdown(wait=True)
        self._started = []
        for removal in self._removals.values():
            removal.result()

    def _begin_removal(self, snapshot: DiskSnapshot) -> None:
        if snapshot not in self._removals:
            self._removals[snapshot] = self._threads.submit(self._remove, snapshot)

    def _remove(self, snapshot: DiskSnapshot) -> None:
        with self._deletions.one():
            snapshot.remove()


def _create(snapshot: DiskSnapshot, creation: Future[None]) -> None:
    if not creation.set_running_or_notify_cancel():
        return
    try:
        snapshot.create()
    except BaseException as error:  # raised in the thread that waits for it
        creation.set_exception(error)
    else:
        creation.set_result(None)


@contextmanager
def gone_afterwards(
    snapshots: Sequence[DiskSnapshot], deletions: Slots, reporter: Reporter, domain: str
) -> Iterator[DomainSnapshots]:
    """Guarantee that none of the snapshots exists after the block; the block makes them.

    `deletions` limits how many are deleted at the same time.
    """
    domain_snapshots = DomainSnapshots(snapshots, deletions)
    with undone_by(domain_snapshots.remove, reporter, domain):
        yield domain_snapshots
