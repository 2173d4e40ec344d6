"""A domain's lock in its cluster: two nodes never back up the same domain at once."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from .cleanly import undone_by
from .cluster import Claim, Cluster, LockHeld
from .errors import BackupError
from .model import Domain, Image, Reporter
from .stop import StopRequest


def lock_name(domain: Domain) -> str:
    """Give the name of the domain's lock object."""
    return f"virt-rbd-backup.lock.{domain.uuid}"


def lock_exists(cluster: Cluster, image: Image, domain: Domain) -> bool:
    """Tell whether there is a lock object, held or left behind."""
    return cluster.object_exists(image, lock_name(domain))


class DomainLock:
    """The lock of one domain: an object beside its first image, renewed by a thread.

    The cluster lets go of it `duration` seconds after the last renewal, should this node die.
    """

    def __init__(self, cluster: Cluster, image: Image, domain: Domain, duration: int) -> None:
        self._cluster = cluster
        self._image = image
        self._duration = duration
        self._name = lock_name(domain)
        self._owner = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self._released = threading.Event()

    def take(self) -> None:
        """Take it. Raises LockHeld if another run has it."""
        try:
            self._claim(Claim.TAKE)
        except LockHeld as error:
            where = f"--pool {self._image.pool} --namespace '{self._image.namespace}'"
            hint = (
                f"who: rados {where} lock info {self._name} virt-rbd-backup; it expires if its node is dead"
            )
            raise LockHeld("another run backs up this domain, maybe on another node", hint) from error

    def keep(self, stop: StopRequest) -> None:
        """Renew it until it is released; if that fails, request the stop."""
        while not self._released.wait(self._duration / 3):
            try:
                self._claim(Claim.RENEW)
            except BackupError as error:
                stop.request(BackupError(f"lost the domain's lock: {error.message}", error.hint))
                return

    def release(self) -> None:
        """Remove the object, and with it the lock in it.

        Claimed once more before, as proof that it is ours: it may have expired, and be another's by now.
        """
        try:
            self._claim(Claim.TAKE_OR_RENEW)
        except LockHeld:
            return
        self._cluster.remove_lock(self._image, self._name)

    def _claim(self, claim: Claim) -> None:
        self._cluster.lock(self._image, self._name, self._owner, self._duration, claim)

    @contextmanager
    def kept(self, stop: StopRequest) -> Iterator[None]:
        """Have a thread renew it during the block."""
        keeper = threading.Thread(target=self.keep, args=(stop,), name="lock", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            self._released.set()
            keeper.join()


@contextmanager
def domain_lock(
    cluster: Cluster, image: Image, domain: Domain, duration: int, stop: StopRequest, reporter: Reporter
) -> Iterator[None]:
    """Hold the domain's lock during the block. Raises LockHeld if another run has it.

    A lock that is lost meanwhile requests the stop.
    """
    lock = DomainLock(cluster, image, domain, duration)
    lock.take()
    with undone_by(lock.release, reporter, domain.name), lock.kept(stop):
        yield
