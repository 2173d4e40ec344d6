"""The lock of a domain that is being restored: no other node restores it, or backs it up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from ..ceph.errors import HeldByCleanup, HeldByDead, HeldByRestore, LockHeld
from ..errors import BackupError
from ..job.domain_lock import RESTORE, DomainLock, LockObject, lock_at
from ..model import Level
from .given import Given

DURATION = 30  # seconds for which a node that has failed keeps others from continuing, at the most
MARGIN = 5.0
POLL = 0.5


@contextmanager
def locked(given: Given) -> Iterator[None]:
    """Hold the lock during the block; that of a process that has ended is waited for.

    Raises BackupError if the domain is being restored, or backed up.
    """
    lock = _lock(given)
    began, reported = time.monotonic(), False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock.locked(given.stop, given.reporter, given.domain.name))
                break
            except (HeldByRestore, HeldByCleanup, HeldByDead) as error:
                if not reported:
                    reported = True
                    given.report(Level.INFO, f"waiting for the domain's lock: {error.message}")
                _require_more_time(error, time.monotonic() - began, lock.duration, given)
            given.stop.check()
            time.sleep(POLL)
        yield


def _require_more_time(error: LockHeld, waited: float, duration: float, given: Given) -> None:
    """Raise BackupError unless it may be that of a process that has ended, and expires."""
    if isinstance(error, HeldByRestore):
        if (error.here and not error.ended) or waited > duration + MARGIN:
            raise BackupError(error.message, "wait for its end, or interrupt it there") from error
    elif waited > given.settings.lock_duration + MARGIN:
        raise error


def _lock(given: Given) -> DomainLock:
    """Return the domain's lock, not yet taken, in all places of its images."""
    duration = min(DURATION, given.settings.lock_duration)
    places = {(image.pool, image.namespace): image for image in given.places.values()}
    first = lock_at(given.cluster, *min(places), given.domain.uuid, duration, RESTORE)
    objects = tuple(LockObject(given.cluster, places[one]) for one in sorted(places))
    return replace(first, objects=objects)
