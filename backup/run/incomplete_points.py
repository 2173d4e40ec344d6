"""Restore points that never came about: removing their images from the output."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Callable

from ..ceph.clusters import Clusters
from ..ceph.errors import LockHeld
from ..errors import BackupError
from ..hypervisor.connections import Hypervisors
from ..job.domain_lock import DomainLock, lock_at, lock_of
from ..model import Domain, Level
from ..protocols import Output, Reporter
from ..selection import select_disks
from ..settings import Settings
from ..stored import StoredPoint
from ..system.stop_request import StopRequest


def incomplete(points: Sequence[StoredPoint]) -> Sequence[StoredPoint]:
    """Give those of which there are images, but no manifest: they are under way, or in vain."""
    return [point for point in points if not point.manifest_id]


def tell_of_dead_locks(removal: Future[None], reporter: Reporter) -> None:
    """Tell if locks of dead processes could not be removed from the output: they keep a prune out."""
    try:
        removal.result()
    except BackupError as error:
        reporter.message(Level.WARNING, "", f"locks of dead processes may still be in the output: {error}")


def discard_own(
    run: str,
    output: Output,
    reporter: Reporter,
    wait_if_busy: bool,
    check_stop: Callable[[], None] = lambda: None,
) -> None:
    """Remove what the run, all of whose workers have ended, saved in vain.

    What can't be removed does not count anyway.
    """
    try:
        left = [point.id for point in incomplete(output.restore_points(check_stop))]
        output.discard([point for point in left if point.run == run], wait_if_busy, check_stop)
    except BackupError as error:
        reporter.message(Level.WARNING, "", f"{_left(run)}: {error}")


def discard_of_dead(
    points: Sequence[StoredPoint],
    domains: Sequence[Domain],
    hypervisors: Hypervisors,
    output: Output,
    settings: Settings,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Remove what other runs saved of these domains, where the locks that they held prove that they are dead.

    A request to stop ends it early: what is left the next run removes.
    """
    for hypervisor in hypervisors:
        own = [domain for domain in domains if domain.uri == hypervisor.uri]
        found = [(point, domain) for domain in own for point in points if point.id.uuid == domain.uuid]
        with Clusters(hypervisor.secret, settings, settings.ceph_timeout) as clusters:
            for point, domain in found:
                _discard_dead(point, domain, clusters, output, settings, reporter, stop)


def _discard_dead(
    point: StoredPoint,
    domain: Domain,
    clusters: Clusters,
    output: Output,
    settings: Settings,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Remove one, unless its run may be alive or there is to be a stop; report what comes of it."""
    if stop.requested:
        return
    run = point.id.run
    try:
        locks = _locks(point, select_disks(domain, settings), clusters, settings.lock_duration)
        with ExitStack() as stack:
            lost = [StopRequest() for _ in locks]  # each of its lock alone
            for lock, of_lock in zip(locks, lost):
                stack.enter_context(lock.held(of_lock, reporter, domain.name))

            def check_stop() -> None:
                for one in (stop, *lost):
                    one.check()

            check_stop()
            output.discard([point.id], True, check_stop)
    except LockHeld:
        return  # it may still be at it
    except BackupError as error:
        if not stop.requested:
            reporter.message(Level.WARNING, domain.name, f"{_left(run)}: {error}")
        return
    text = f"removed from the output what killed runs left: run={run}"
    reporter.message(Level.WARNING, domain.name, text)


def _locks(point: StoredPoint, domain: Domain, clusters: Clusters, duration: int) -> Sequence[DomainLock]:
    """Give the locks that the run has, if it lives, that saves the point.

    They may be in other places than those of the domain as it is defined here. Raises LockHeld where they are
    in another cluster: nobody here can tell whether that run lives.
    """
    if not point.locks:  # an older version does not tell
        return [lock_of(domain, clusters, duration)]
    known = [clusters.at(disk.address) for disk in domain.disks if disk.image]
    by_fsid = {cluster.fsid: cluster for cluster in known}
    locks = []
    for place in point.locks:
        fsid, _, within = place.partition("/")
        pool, _, namespace = within.partition("/")
        if fsid not in by_fsid:
            raise LockHeld(f"the run {point.id.run} has its lock in the cluster {fsid}")
        if by_fsid[fsid].has_pool(pool):
            locks.append(lock_at(by_fsid[fsid], pool, namespace, domain.uuid, duration))
    return locks


def _left(runs: str) -> str:
    return f"images of incomplete restore points (run={runs}) may still be in the output"
