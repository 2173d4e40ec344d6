"""Restore points that never came about: removing their images from the output."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future

from .cluster_errors import LockHeld
from .connect import Clusters
from .errors import BackupError
from .hypervisors import Hypervisors
from .lock import DomainLock, lock_of
from .model import Domain, HeldPoint, Level, PointId
from .protocols import Output, Reporter
from .settings import Settings
from .stop import StopRequest


def incomplete(points: Sequence[HeldPoint]) -> Sequence[PointId]:
    """Name those of which there are images, but no manifest: they are under way, or in vain."""
    return [point.id for point in points if not point.manifest_id]


def tell_of_dead_locks(removal: Future[None], reporter: Reporter) -> None:
    """Tell if locks of dead processes could not be removed from the output: they keep a prune out."""
    try:
        removal.result()
    except BackupError as error:
        reporter.message(Level.WARNING, "", f"locks of dead processes may still be in the output: {error}")


def discard_own(run: str, output: Output, reporter: Reporter, patient: bool) -> None:
    """Remove what the run, all of whose workers have ended, saved in vain.

    What can't be removed does not count anyway.
    """
    try:
        left = incomplete(output.restore_points())
        output.discard([point for point in left if point.run == run], patient)
    except BackupError as error:
        reporter.message(Level.WARNING, "", f"{_left(run)}: {error}")


def discard_of_dead(
    points: Collection[PointId],
    domains: Sequence[Domain],
    hypervisors: Hypervisors,
    output: Output,
    settings: Settings,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Remove what other runs saved of these domains, where a domain's lock proves that they are dead.

    A request to stop ends it early: what is left the next run removes.
    """
    for hypervisor in hypervisors:
        with Clusters(hypervisor, settings, settings.ceph_timeout) as clusters:
            for domain in domains:
                own = [point for point in points if point.uuid == domain.uuid]
                if not own or domain.uri != hypervisor.uri or stop.requested:
                    continue
                names = ", ".join(point.run for point in own)
                try:
                    lock = lock_of(domain, clusters, settings.lock_duration)
                    _discard(own, domain, lock, output, reporter, stop)
                except LockHeld:
                    continue  # one of them may still be at it
                except BackupError as error:
                    if not stop.requested:
                        reporter.message(Level.WARNING, domain.name, f"{_left(names)}: {error}")
                    continue
                text = f"removed from the output what killed runs left: run={names}"
                reporter.message(Level.WARNING, domain.name, text)


def _discard(
    points: Collection[PointId],
    domain: Domain,
    lock: DomainLock,
    output: Output,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Remove them under the domain's lock, unless that is lost by then."""
    lost = StopRequest()  # of this lock alone
    with lock.held(lost, reporter, domain.name):
        stop.check()
        lost.check()
        output.discard(points, patient=True)


def _left(runs: str) -> str:
    return f"images of incomplete restore points (run={runs}) may still be in the output"
