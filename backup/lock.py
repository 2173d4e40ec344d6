"""A domain's lock in its cluster: two nodes never back up the same domain at once."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from . import PROGRAM
from .cleanly import undone_by
from .cluster import Claim, Cluster
from .cluster_errors import LockHeld
from .connect import Clusters
from .errors import BackupError
from .model import Domain, Image
from .protocols import Reporter
from .stop import StopRequest


@dataclass(frozen=True)
class DomainLock:
    """The lock of one domain: an object beside its first image, renewed by a thread.

    The cluster lets go of it `duration` seconds after the last renewal, should this node die.
    """

    cluster: Cluster
    image: Image
    name: str
    owner: str
    duration: int

    def exists(self) -> bool:
        """Tell whether there is a lock object, held or left behind."""
        return self.cluster.object_exists(self.image, self.name)

    @contextmanager
    def held(self, stop: StopRequest, reporter: Reporter, domain: str) -> Iterator[None]:
        """Hold the lock during the block. Raises LockHeld if another run has it.

        A lock that is lost, or can't be renewed in time, requests the stop.
        """
        with undone_by(self._release, reporter, domain):  # also where the lock was had, but no answer came
            began = time.monotonic()
            try:
                self._claim(Claim.TAKE)
            except LockHeld as error:
                where = f"--pool {self.image.pool} --namespace '{self.image.namespace}'"
                who = f"rados {where} lock info {self.name} virt-rbd-backup"
                hint = f"who: {who}; it expires if its node is dead"
                raise LockHeld("another run backs up this domain, maybe on another node", hint) from error
            stop.lease_until(began + self.duration)
            with self._renewed(stop):
                yield

    @contextmanager
    def _renewed(self, stop: StopRequest) -> Iterator[None]:
        """Have a thread renew it during the block."""
        ended = threading.Event()
        keeper = threading.Thread(target=self._renew, args=(stop, ended), name="lock", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()

    def _renew(self, stop: StopRequest, ended: threading.Event) -> None:
        while not ended.wait(self.duration / 3):
            began = time.monotonic()
            try:
                self._claim(Claim.RENEW)
            except BackupError as error:
                stop.request(BackupError(f"lost the domain's lock: {error.message}", error.hint))
                return
            stop.lease_until(began + self.duration)

    def _release(self) -> None:
        """Remove the object, and with it the lock in it.

        Claimed once more before, as proof that it is ours: it may have expired, and be another's by now.
        """
        try:
            self._claim(Claim.TAKE_OR_RENEW)
        except LockHeld:
            return
        self.cluster.remove_lock(self.image, self.name)

    def _claim(self, claim: Claim) -> None:
        self.cluster.lock(self.image, self.name, self.owner, self.duration, claim)


def lock_of(domain: Domain, clusters: Clusters, duration: int) -> DomainLock:
    """Give the domain's lock, not yet taken: beside the first RBD image that its metadata does not exclude.

    `domain` is as libvirt has it: what one node's settings leave out must not move the lock elsewhere.
    Raises BackupError if it has no such image.
    """
    for disk in domain.disks:
        if disk.image and not domain.override.excludes(disk.target):
            owner = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
            name = f"virt-rbd-backup.lock.{domain.uuid}"
            return DomainLock(clusters.at(disk.address), disk.image, name, owner, duration)
    raise BackupError("the domain has no RBD image", f"see {PROGRAM} list")
