"""Incomplete restore points: removing their images from the repository."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
from ..stored import PointId, StoredPoint
from ..system.stop_request import StopRequest


def incomplete(points: Sequence[StoredPoint]) -> Sequence[StoredPoint]:
    """Return those with images but no manifest: their run is active, or was interrupted."""
    return [point for point in points if not point.manifest_id]


def report_dead_locks(removal: Future[None], reporter: Reporter) -> None:
    """Warn if locks of dead processes could not be removed from the repository: they block a prune."""
    try:
        removal.result()
    except BackupError as error:
        reporter.message(
            Level.WARNING, "", f"locks of dead processes may still be in the repository: {error}"
        )


def discard_own(
    run: str,
    failed: set[PointId],
    output: Output,
    reporter: Reporter,
    wait_if_busy: bool,
    check_stop: Callable[[], None] = lambda: None,
) -> None:
    """Remove the run's incomplete restore points, and those `failed`, once all its workers have ended.

    Some may be of earlier runs. `failed` loses those that were removed, and those of earlier runs that are
    not there. A failure is a warning, or an error if what failed looks complete.
    """
    try:
        listed = output.restore_points(check_stop)
    except BackupError as error:
        also = ", and restore points that failed, which look complete" if failed else ""
        reporter.message(Level.WARNING, "", f"{_still_there(run)}{also}: {error}")
        return
    try:
        own = [point.id for point in incomplete(listed) if point.id.run == run]
        output.discard(own, wait_if_busy, check_stop)
    except BackupError as error:
        reporter.message(Level.WARNING, "", f"{_still_there(run)}: {error}")
    complete = {point.id for point in listed if point.manifest_id and point.id in failed}
    failed &= complete | {point for point in failed if point.run == run}
    if complete and _withdrawn(complete, output, reporter, check_stop):
        failed -= complete


def _withdrawn(
    points: Collection[PointId],
    output: Output,
    reporter: Reporter,
    check_stop: Callable[[], None],
) -> bool:
    """Remove restore points that failed after the output had stored them; return whether they are gone."""
    try:
        output.withdraw(points, check_stop)
    except BackupError as error:
        runs = ", ".join(sorted({f"run={point.run}" for point in points}))
        text = f"restore points that failed ({runs}) are still in the repository, and look complete"
        reporter.message(Level.ERROR, "", f"{text}: {error}")
        return False
    return True


def discard_of_dead(
    points: Sequence[StoredPoint],
    domains: Sequence[Domain],
    hypervisors: Hypervisors,
    output: Output,
    settings: Settings,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Remove other runs' incomplete restore points of these domains, if the locks prove those runs dead.

    A request to stop ends it early: the next run removes the rest.
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
    """Remove one, unless its run may be alive or a stop is requested; report the outcome."""
    if stop.requested:
        return
    run = point.id.run
    try:
        locks = _locks(point, select_disks(domain, settings), clusters, settings.lock_duration)
        with ExitStack() as stack:
            lost = [StopRequest() for _ in locks]  # one for each lock
            for lock, of_lock in zip(locks, lost):
                stack.enter_context(lock.locked(of_lock, reporter, domain.name))

            def check_stop() -> None:
                for one in (stop, *lost):
                    one.check()

            check_stop()
            output.discard([point.id], True, check_stop)
    except LockHeld:
        return  # its run may be alive
    except BackupError as error:
        if not stop.requested:
            reporter.message(Level.WARNING, domain.name, f"{_still_there(run)}: {error}")
        return
    text = f"removed an incomplete restore point of an interrupted run from the repository: run={run}"
    reporter.message(Level.WARNING, domain.name, text)


def _locks(point: StoredPoint, domain: Domain, clusters: Clusters, duration: int) -> Sequence[DomainLock]:
    """Return the locks that the point's run holds if it is alive.

    They may be in other places than those of the domain's definition here. Raises LockHeld if one is in
    another cluster: from here that run cannot be proven dead.
    """
    if not point.locks:  # saved by an older version
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


def _still_there(runs: str) -> str:
    return f"images of incomplete restore points (run={runs}) may still be in the repository"
