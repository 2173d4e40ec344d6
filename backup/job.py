"""The backup of one domain, from its lock to its last snapshot's removal."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from .connect import Clusters
from .errors import BackupError, DomainGone
from .freeze import Holder, Standstill
from .hypervisor import Hypervisor
from .journal import Journal
from .lock import lock_of
from .model import (
    Consistency,
    Domain,
    JobResult,
    Level,
    Output,
    Reporter,
    RestorePoint,
    State,
    Status,
)
from .selection import covered
from .settings import Settings
from .snapshots import DiskSnapshot, DomainSnapshots, gone_afterwards, owned_prefix, remove_leftovers
from .stop import StopRequest


@dataclass(frozen=True)
class JobOrder:
    """What a worker is told to do."""

    run: str
    name: str
    uuid: str


@dataclass
class DomainJob:
    """One domain's backup. Satisfies model.Job."""

    order: JobOrder
    settings: Settings
    output: Output
    reporter: Reporter
    stop: StopRequest

    def check_stop(self) -> None:
        self.stop.check()

    def run(self) -> JobResult:
        """Back the domain up and tell how it went; only bugs are raised."""
        started = time.monotonic()
        result = JobResult(self.order.name, self.order.uuid, Status.SAVED)
        try:
            with ExitStack() as stack:
                result = self._saved(result, stack)
        except DomainGone as error:
            result = replace(result, status=Status.SKIPPED, reason=error.message)
        except BackupError as error:
            reason = f"saved, but {error.message}" if result.images else error.message
            result = replace(result, status=Status.FAILED, reason=reason, hint=error.hint)
        return replace(result, seconds=time.monotonic() - started)

    def _saved(self, result: JobResult, stack: ExitStack) -> JobResult:
        """Do the work; what `stack` still holds on return is undone by the caller, errors included."""
        hypervisor = stack.enter_context(Hypervisor(self.settings.libvirt_uri))
        domain = _ready(hypervisor.domain(self.order.uuid))
        snapshots = self._locked_snapshots(domain, hypervisor, stack)
        self.check_stop()
        point = self._take(domain, hypervisor, snapshots)
        images = self.output.save(point, snapshots.snapshots, self)
        return replace(
            result, consistency=point.consistency, frozen_seconds=point.frozen_seconds, images=images
        )

    def _locked_snapshots(self, domain: Domain, hypervisor: Hypervisor, stack: ExitStack) -> DomainSnapshots:
        """Lock the domain, remove leftovers, and prepare its snapshots; none is made yet."""
        settings = self.settings
        clusters = stack.enter_context(Clusters(hypervisor, settings, settings.ceph_timeout))
        lock = lock_of(domain, clusters, settings.lock_duration)
        stack.enter_context(lock.held(self.stop, self.reporter, domain.name))
        name = owned_prefix(domain.uuid) + self.order.run
        snapshots = [
            DiskSnapshot(disk, disk.image, clusters.at(disk.address), name)
            for disk in covered(domain, settings).disks
            if disk.image
        ]
        if not snapshots:
            raise BackupError("the domain no longer has an RBD image to back up", "see `main.py list`")
        for snapshot in snapshots:
            remove_leftovers(snapshot.cluster, snapshot.image, domain, self.reporter)
        return stack.enter_context(gone_afterwards(snapshots, self.reporter, domain.name))

    def _take(self, domain: Domain, hypervisor: Hypervisor, snapshots: DomainSnapshots) -> RestorePoint:
        """Make the snapshots while the domain is held still."""
        listed = domain.disks
        domain = _ready(hypervisor.domain(domain.uuid))  # connecting took its time
        if domain.disks != listed:
            raise BackupError("its disks were changed just now", "the next run tries again")
        domain = covered(domain, self.settings)
        definition = hypervisor.definition(domain)
        holder = Holder(hypervisor, Journal(self.settings.runtime_dir), self.settings, self.reporter)
        with holder.held_still(domain) as stand:
            snapshots.create(stand.seconds_left, self.check_stop)
            taken = datetime.now(timezone.utc)
        if stand.consistency is Consistency.OFFLINE and snapshots.in_use():
            stand.consistency = Consistency.CRASH
            message = "shut off here, but its images are in use: does it run on another node?"
            self.reporter.message(Level.WARNING, domain.name, message)
        self.reporter.message(Level.INFO, domain.name, _told(stand, len(snapshots.snapshots)))
        return RestorePoint(
            run=self.order.run,
            host=socket.gethostname(),
            taken=taken,
            domain=domain,
            definition=definition,
            consistency=stand.consistency,
            frozen_seconds=stand.seconds,
        )


def _ready(domain: Domain) -> Domain:
    """Give the domain back. Raises BackupError if another moment is better."""
    if domain.state is State.BUSY:
        raise BackupError("the domain is just starting, stopping or migrating", "the next run tries again")
    if domain.state is State.ELSEWHERE:
        raise DomainGone("the domain migrated to another node")
    return domain


def _told(stand: Standstill, count: int) -> str:
    text = f"{count} snapshot{'s' if count > 1 else ''} made, {stand.consistency.value}"
    return f"{text}, stood still for {stand.seconds:.2f} s" if stand.seconds else text
