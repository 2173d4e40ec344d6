"""The backup of one domain, from its lock to its last snapshot's removal."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from .connect import Clusters
from .errors import BackupError, DomainGone
from .freeze import Holder
from .hypervisor import Hypervisor
from .journal import Journal
from .lock import domain_lock
from .model import (
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
        domain = covered(hypervisor.domain(self.order.uuid), self.settings)
        if domain.state is State.BUSY:
            raise BackupError(
                "the domain is just starting, stopping or migrating", "the next run tries again"
            )
        snapshots = self._locked_snapshots(domain, hypervisor, stack)
        self.check_stop()
        point = self._take(domain, hypervisor, snapshots)
        images = self.output.save(point, snapshots.snapshots, self)
        return replace(
            result, consistency=point.consistency, frozen_seconds=point.frozen_seconds, images=images
        )

    def _locked_snapshots(self, domain: Domain, hypervisor: Hypervisor, stack: ExitStack) -> DomainSnapshots:
        """Lock the domain, remove leftovers, and prepare its snapshots; none is made yet."""
        name = owned_prefix(domain.uuid) + self.order.run
        clusters = stack.enter_context(Clusters(hypervisor, self.settings, self.settings.ceph_timeout))
        snapshots = [
            DiskSnapshot(disk, disk.image, clusters.at(disk.address), name)
            for disk in domain.disks
            if disk.image
        ]
        if not snapshots:
            raise DomainGone("the domain no longer has an RBD image to back up")
        first = snapshots[0]
        duration = self.settings.lock_duration
        stack.enter_context(
            domain_lock(first.cluster, first.image, domain, duration, self.stop, self.reporter)
        )
        for snapshot in snapshots:
            remove_leftovers(snapshot.cluster, snapshot.image, domain, self.reporter)
        return stack.enter_context(gone_afterwards(snapshots, self.reporter, domain.name))

    def _take(self, domain: Domain, hypervisor: Hypervisor, snapshots: DomainSnapshots) -> RestorePoint:
        """Make the snapshots while the domain is held still."""
        definition = hypervisor.definition(domain)
        holder = Holder(hypervisor, Journal(self.settings.runtime_dir), self.settings, self.reporter)
        with holder.held_still(domain) as stand:
            snapshots.create(stand.seconds_left, self.check_stop)
            taken = datetime.now(timezone.utc)
        count = len(snapshots.snapshots)
        text = f"{count} snapshot{'s' if count > 1 else ''} made, {stand.consistency.value}"
        if stand.seconds:
            text += f", stood still for {stand.seconds:.2f} s"
        self.reporter.message(Level.INFO, domain.name, text)
        return RestorePoint(
            run=self.order.run,
            host=socket.gethostname(),
            taken=taken,
            domain=domain,
            definition=definition,
            consistency=stand.consistency,
            frozen_seconds=stand.seconds,
        )
