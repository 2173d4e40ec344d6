"""A domain's lock in its clusters: two nodes never back up the same domain at once."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
import uuid as uuids
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from .. import PROGRAM
from ..ceph.cluster import Claim, Cluster
from ..ceph.clusters import Clusters
from ..ceph.errors import ClusterError, LockHeld
from ..errors import BackupError, TransientError
from ..model import Domain, Image, Level
from ..protocols import Reporter
from ..system.stop_request import StopRequest
from ..system.undo import undone_by

RETRY_PAUSE = 1.0  # seconds before a renewal that failed is retried, at the most


@dataclass(frozen=True)
class LockObject:
    """One object of a domain's lock: in the pool and namespace of `image`, whatever its name."""

    cluster: Cluster
    image: Image

    @property
    def place(self) -> str:
        return f"{self.cluster.fsid}/{self.image.pool}/{self.image.namespace}"


@dataclass(frozen=True)
class DomainLock:
    """The lock of one domain: an object in each place where it has images, all renewed by a thread.

    So nodes whose definitions of the domain differ still exclude one another where they have an image in the
    same place. The cluster forgets it `duration` seconds after the last renewal, should this node die.
    """

    objects: tuple[LockObject, ...]
    name: str
    owner: str
    duration: int

    @property
    def places(self) -> tuple[str, ...]:
        """Where its objects are, as FSID/pool/namespace, in the order in which they are taken."""
        return tuple(one.place for one in self.objects)

    def exists(self) -> bool:
        """Tell whether there is a lock object, held or left behind."""
        return any(one.cluster.object_exists(one.image, self.name) for one in self.objects)

    @contextmanager
    def held(self, stop: StopRequest, reporter: Reporter, domain: str) -> Iterator[None]:
        """Hold the lock during the block. Raises LockHeld if another run has it.

        A renewal that fails is retried for as long as the clusters' `retry` says; meanwhile the lock may have
        expired, which `stop.leased` tells. A lock that was another's, or can't be renewed, requests the stop.
        """
        with ExitStack() as stack:
            began = time.monotonic()
            for one in self.objects:
                # also where the lock was had, but no answer came
                stack.enter_context(undone_by(partial(self._release, one), reporter, domain))
                self._take(one)
            stop.lease_until(began + self.duration, self._retry_limit)
            stack.enter_context(self._renewed(stop, reporter, domain))
            yield

    @property
    def _retry_limit(self) -> float:
        return min(one.cluster.retry.limit for one in self.objects)

    def _take(self, one: LockObject) -> None:
        try:
            one.cluster.lock(one.image, self.name, self.owner, self.duration, Claim.TAKE)
        except LockHeld as error:
            where = f"--pool {one.image.pool} --namespace '{one.image.namespace}'"
            who = f"rados {where} lock info {self.name} virt-rbd-backup"
            hint = f"who: {who}; it expires if its node is dead"
            raise LockHeld("another run backs up this domain, maybe on another node", hint) from error

    def _release(self, one: LockObject) -> None:
        one.cluster.remove_lock(one.image, self.name, self.owner)

    @contextmanager
    def _renewed(self, stop: StopRequest, reporter: Reporter, domain: str) -> Iterator[None]:
        """Have a thread renew it during the block."""
        ended = threading.Event()
        keeper = _Keeper(self, stop, reporter, domain, ended, self._retry_limit)
        thread = threading.Thread(target=keeper.run, name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def keep(self) -> None:
        """Renew it everywhere, or take it again where it expired and nobody else has had it since."""
        for one in self.objects:
            one.cluster.lock(one.image, self.name, self.owner, self.duration, Claim.RENEW)


class _Keeper:
    """Renews a lock until it is told to end, or the lock is lost."""

    def __init__(
        self,
        lock: DomainLock,
        stop: StopRequest,
        reporter: Reporter,
        domain: str,
        ended: threading.Event,
        limit: float,
    ) -> None:
        self._lock = lock
        self._stop = stop
        self._reporter = reporter
        self._domain = domain
        self._ended = ended
        self._limit = limit
        self._failed_since = 0.0  # of time.monotonic(); 0: the last renewal was good

    def run(self) -> None:
        """The body of the thread."""
        pause = self._lock.duration / 3
        good = time.monotonic()
        while not self._ended.wait(pause):
            began = time.monotonic()
            try:
                self._lock.keep()
            except BackupError as error:
                transient = isinstance(error, ClusterError) and error.transient
                if not transient or time.monotonic() >= good + self._limit:
                    self._stop.request(TransientError(f"lost the domain's lock: {error.message}", error.hint))
                    self._stop.lease_until(-math.inf)
                    return
                self._note_failure(error)
                pause = min(RETRY_PAUSE, self._lock.duration / 3)
            else:
                good, pause = began, self._lock.duration / 3
                self._stop.lease_until(began + self._lock.duration, self._limit)
                self._note_renewal()

    def _note_failure(self, error: BackupError) -> None:
        level = Level.DEBUG if self._failed_since else Level.WARNING
        self._failed_since = self._failed_since or time.monotonic()
        text = f"cannot renew the domain's lock: {error.message}; retrying for up to {self._limit:.0f} s"
        self._reporter.message(level, self._domain, f"{text} (CEPH_STALL_TIMEOUT)")

    def _note_renewal(self) -> None:
        if self._failed_since:
            self._failed_since = 0.0
            self._reporter.message(Level.INFO, self._domain, "the domain's lock is renewed again")


def lock_of(domain: Domain, clusters: Clusters, duration: int) -> DomainLock:
    """Give the domain's lock, not yet taken: wherever it has an RBD image that its metadata does not exclude.

    `domain` is as libvirt has it: what one node's settings leave out must not leave a place unlocked.
    Raises BackupError if it has no such image.
    """
    found: dict[tuple[str, str, str], LockObject] = {}
    for disk in domain.disks:
        if disk.image and not domain.override.excludes(disk.target):
            cluster = clusters.at(disk.address)
            key = (cluster.fsid, disk.image.pool, disk.image.namespace)
            found.setdefault(key, LockObject(cluster, disk.image))
    if not found:
        raise BackupError("the domain has no RBD image", f"see {PROGRAM} list")
    # every node takes them in this order: of two that begin at once, one gets all
    return _lock(tuple(found[key] for key in sorted(found)), domain.uuid, duration)


def lock_at(cluster: Cluster, pool: str, namespace: str, uuid: str, duration: int) -> DomainLock:
    """Give the lock of a domain in one place, whatever its definition says by now; not yet taken."""
    return _lock((LockObject(cluster, Image(pool, "", namespace)),), uuid, duration)


def _lock(objects: tuple[LockObject, ...], uuid: str, duration: int) -> DomainLock:
    owner = f"{socket.gethostname()}.{os.getpid()}.{uuids.uuid4().hex[:8]}"
    return DomainLock(objects, f"virt-rbd-backup.lock.{uuid}", owner, duration)
