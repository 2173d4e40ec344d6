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

from ..ceph.cluster import Claim, Cluster
from ..ceph.clusters import Clusters
from ..ceph.errors import ClusterError, HeldByCleanup, HeldByDead, HeldByRestore, LockHeld
from ..command import COMMAND
from ..errors import BackupError, TransientError
from ..model import Domain, Image, Level
from ..protocols import Reporter
from ..system.process_group import pid_in_use
from ..system.stop_request import StopRequest
from ..system.time_limit import thread_errors
from ..system.undo import undone_by

CLEANUP = "cleanup."  # how owners begin that only remove leftovers
RESTORE = "restore."  # and those that restore the domain while its guest runs
RETRY_PAUSE = 1.0  # seconds before a renewal that failed is retried, at the most
EXPIRY_MARGIN = 5.0  # seconds for the lock of a killed process to expire later than by this clock


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

    So nodes with different definitions of the domain still exclude one another if they have an image in the
    same place. If this node dies, the lock expires `duration` seconds after the last renewal.
    """

    objects: tuple[LockObject, ...]
    name: str
    owner: str
    duration: int

    @property
    def places(self) -> tuple[str, ...]:
        """The places of its objects, as FSID/pool/namespace, in the order in which they are taken."""
        return tuple(one.place for one in self.objects)

    def covers(self, cluster: Cluster, image: Image) -> bool:
        """Return whether it has an object in the image's place: no other run that saves it is active then."""
        return LockObject(cluster, image).place in self.places

    def exists(self) -> bool:
        """Return whether there is a lock object, in use or left over."""
        return any(one.cluster.object_exists(one.image, self.name) for one in self.objects)

    def holder(self) -> str:
        """Return what holds the lock now, such as "backup on node1"; "" if nothing does."""
        for one in self.objects:
            if one.cluster.is_locked(one.image, self.name):
                return owner_text(one.cluster.last_owner(one.image, self.name))
        return ""

    @contextmanager
    def locked(self, stop: StopRequest, reporter: Reporter, domain: str) -> Iterator[None]:
        """Hold the lock during the block. Raises LockHeld if another run has it.

        A failed renewal is retried within the limit of the clusters' `retry`; meanwhile the lock may expire,
        then `stop.leased` is false. If another run took it, or the limit is over, a stop is requested.
        """
        with ExitStack() as stack:
            began = time.monotonic()
            for one in self.objects:
                # also where the lock was taken, but the answer got lost
                release = partial(self._release, one, stop, reporter, domain)
                stack.enter_context(undone_by(release, reporter, domain))
                self._take(one)
            if time.monotonic() > began + self.duration / 3:  # the first may have expired meanwhile
                began = time.monotonic()
                for one in self.objects:
                    self._take(one)
            stop.lease_until(began + self.duration, self._retry_limit)
            stack.enter_context(self._renewed(stop, reporter, domain))
            yield

    @contextmanager
    def locked_after_dead(self, stop: StopRequest, reporter: Reporter, domain: str) -> Iterator[None]:
        """The same, but wait for the lock of a process of this node that was killed: it expires in time.

        Each message is a sign of life of the worker that waits.
        """
        began, level = time.monotonic(), Level.INFO
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self.locked(stop, reporter, domain))
                    break
                except HeldByDead as error:
                    if time.monotonic() > began + self.duration + EXPIRY_MARGIN:
                        raise
                    reporter.message(level, domain, f"waiting for the domain's lock: {error.message}")
                    level = Level.DEBUG
                stop.check()
                time.sleep(RETRY_PAUSE)
            yield

    @property
    def _retry_limit(self) -> float:
        return min(one.cluster.retry.limit for one in self.objects)

    def _take(self, one: LockObject) -> None:
        """Take it; one whose answer was lost is renewed by the next try. Raises LockHeld."""
        claim = partial(one.cluster.lock, one.image, self.name, self.owner, self.duration, Claim.TAKE)
        try:
            one.cluster.retry.call(claim)
        except LockHeld as error:
            place = f"--pool {one.image.pool} --namespace '{one.image.namespace}'"
            owner = one.cluster.last_owner(one.image, self.name)
            if owner.startswith(RESTORE):
                found = HeldByRestore(f"the domain is being restored: {owner_text(owner)}")
                found.here = _host_of(owner[len(RESTORE) :]) == socket.gethostname()
                found.ended = _is_dead(owner[len(RESTORE) :])
                raise found from error
            if _is_dead(owner):
                message = f"a backup of this domain was killed, and its lock has not expired yet ({owner})"
                hint = (
                    f"it expires within {self.duration} s (LOCK_DURATION); a retry, or the next run, saves it"
                )
                raise HeldByDead(message, hint) from error
            if owner.startswith(CLEANUP):
                message = "a cleanup, maybe on another node, is removing leftovers of this domain"
                raise HeldByCleanup(message, "it takes seconds; a retry will find the lock free") from error
            command = f"rados {place} lock info {self.name} virt-rbd-backup"
            hint = f"to see its owner: {command}; the lock expires if its node is dead"
            raise LockHeld("another run is backing up this domain, maybe on another node", hint) from error

    def _release(self, one: LockObject, stop: StopRequest, reporter: Reporter, domain: str) -> None:
        """Remove it. One that cannot be removed expires by itself, so that fails no domain."""
        expires = min(stop.lease_ends, time.monotonic() + self.duration)
        try:
            one.cluster.remove_lock(one.image, self.name, self.owner, expires)
        except ClusterError as error:
            text = f"the domain's lock stays until it expires, within {self.duration} s (LOCK_DURATION)"
            reporter.message(Level.WARNING, domain, f"{text}: {error}")

    @contextmanager
    def _renewed(self, stop: StopRequest, reporter: Reporter, domain: str) -> Iterator[None]:
        """Renew it in a thread during the block."""
        ended = threading.Event()
        renewer = _Renewer(self, stop, reporter, domain, ended, self._retry_limit)
        thread = threading.Thread(target=renewer.run, name="lock", daemon=True)
        with thread_errors():
            thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def renew(self) -> None:
        """Renew it everywhere, or take it again where it expired and no other run had it since."""
        for one in self.objects:
            one.cluster.lock(one.image, self.name, self.owner, self.duration, Claim.RENEW)


class _Renewer:
    """Renews a lock until `ended` is set, or the lock is lost."""

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
        self._failed_since = 0.0  # in time.monotonic(); 0: the last renewal succeeded

    def run(self) -> None:
        """The body of the thread."""
        pause = self._lock.duration / 3
        good = time.monotonic()
        while not self._ended.wait(pause):
            began = time.monotonic()
            try:
                self._lock.renew()
            except BackupError as error:
                transient = isinstance(error, ClusterError) and error.transient
                if not transient or time.monotonic() >= good + self._limit:
                    self._stop.request(TransientError(f"lost the domain's lock: {error.message}", error.hint))
                    self._stop.lease_until(-math.inf)
                    return
                self._report_failure(error)
                pause = min(RETRY_PAUSE, self._lock.duration / 3)
            else:
                good, pause = began, self._lock.duration / 3
                self._stop.lease_until(began + self._lock.duration, self._limit)
                self._report_renewal()

    def _report_failure(self, error: BackupError) -> None:
        level = Level.DEBUG if self._failed_since else Level.WARNING
        self._failed_since = self._failed_since or time.monotonic()
        text = f"cannot renew the domain's lock: {error.message}; retrying for up to {self._limit:.0f} s"
        self._reporter.message(level, self._domain, f"{text} (CEPH_STALL_TIMEOUT)")

    def _report_renewal(self) -> None:
        if self._failed_since:
            self._failed_since = 0.0
            self._reporter.message(Level.INFO, self._domain, "the domain's lock is renewed again")


def owner_text(owner: str) -> str:
    """Return what an owner does, and on which node: "backup on node1"."""
    what, name = "backup", owner
    for prefix, purpose in ((CLEANUP, "cleanup"), (RESTORE, "instant restore")):
        if owner.startswith(prefix):
            what, name = purpose, owner[len(prefix) :]
    return f"{what} on {_host_of(name)}"


def _host_of(owner: str) -> str:
    return owner.rsplit(".", 2)[0]


def _is_dead(owner: str) -> bool:
    """Return whether an owner was a process of this node that does not run any more."""
    host, _, process = owner.rpartition(".")[0].rpartition(".")
    try:
        return host == socket.gethostname() and process.isdecimal() and not pid_in_use(int(process))
    except OSError:  # out of files
        return False


def lock_of(domain: Domain, clusters: Clusters, duration: int, purpose: str = "") -> DomainLock:
    """Return the domain's lock, not yet taken, in all places of images that its metadata does not exclude.

    `purpose` is CLEANUP if it is not locked for a backup. Raises BackupError if it has no such image.
    """
    found: dict[tuple[str, str, str], LockObject] = {}
    for disk in domain.disks:
        if disk.image and not domain.override.excludes(disk.target):
            cluster = clusters.at(disk.address)
            key = (cluster.fsid, disk.image.pool, disk.image.namespace)
            found.setdefault(key, LockObject(cluster, disk.image))
    if not found:
        raise BackupError("the domain has no RBD image", f"see {COMMAND} list")
    # all nodes take them in the same order: of two that begin at once, one gets all
    return _lock(tuple(found[key] for key in sorted(found)), domain.uuid, duration, purpose)


def lock_at(
    cluster: Cluster, pool: str, namespace: str, uuid: str, duration: int, purpose: str = ""
) -> DomainLock:
    """Return the lock of a domain in one place, whatever its present definition; not yet taken."""
    return _lock((LockObject(cluster, Image(pool, "", namespace)),), uuid, duration, purpose)


def _lock(objects: tuple[LockObject, ...], uuid: str, duration: int, purpose: str) -> DomainLock:
    owner = f"{purpose}{socket.gethostname()}.{os.getpid()}.{uuids.uuid4().hex[:8]}"
    return DomainLock(objects, f"virt-rbd-backup.lock.{uuid}", owner, duration)
