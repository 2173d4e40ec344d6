"""The restore point of a domain: its definition, and its snapshots, made while the guest is quiesced."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Callable, Optional

from ..errors import BackupError, DomainGone, Skipped, TransientError
from ..hypervisor.connection import Hypervisor
from ..model import Consistency, Domain, Image, Level, State
from ..protocols import Reporter
from ..selection import effective, select_disks
from ..settings import Settings
from ..stored import RestorePoint
from ..system.stop_request import StopRequest
from .freeze import Holder, Standstill
from .freeze_notes import Journal
from .job_order import JobOrder
from .snapshots import DomainSnapshots


@dataclass
class QuiescedSnapshots:
    """Makes a domain's snapshots while it is quiesced. `stand` is how it was, once it has been.

    `require_lock` raises, after a wait, if the domain's lock is not this job's own.
    """

    order: JobOrder
    settings: Settings
    reporter: Reporter
    stop: StopRequest
    require_lock: Callable[[], None]
    stand: Optional[Standstill] = field(default=None, init=False)

    def take(
        self,
        domain: Domain,
        hypervisor: Hypervisor,
        snapshots: DomainSnapshots,
        lock_places: tuple[str, ...],
    ) -> RestorePoint:
        """Make the snapshots while the domain is held still."""
        listed = domain
        domain = hypervisor.domain(domain.uuid)  # connecting took its time
        require_ready(domain)
        if (domain.disks, domain.override) != (listed.disks, listed.override):
            raise TransientError("its definition was changed just now", "the next run tries again")
        settings = effective(domain, self.settings)
        domain = select_disks(domain, settings)
        definition = hypervisor.definition(domain)
        holder = Holder(hypervisor, Journal(settings.runtime_dir), settings, self.reporter)
        shared = self._in_use_by_others(domain, snapshots, settings)
        self.require_lock()
        with snapshots.kept_open(), holder.held_still(domain) as stand:
            self.stand = stand
            snapshots.create(stand.seconds_left, self.stop.check_leased)
            taken = datetime.now(timezone.utc)
        if shared or self._in_use_by_others(domain, snapshots, settings):
            stand.consistency = Consistency.CRASH
        self.reporter.message(Level.INFO, domain.name, _told(stand, len(snapshots.snapshots)))
        return RestorePoint(
            run=self.order.run,
            host=socket.gethostname(),
            taken=taken,
            domain=domain,
            definition=definition,
            consistency=stand.consistency,
            frozen_seconds=stand.seconds,
            attempt=self.order.attempt,
            locks=lock_places,
        )

    def _in_use_by_others(self, domain: Domain, snapshots: DomainSnapshots, settings: Settings) -> bool:
        """Tell whether others may write to the images while the domain is held still.

        Raises Skipped where another node's backup is better, BackupError where a freeze is required.
        """
        others = snapshots.in_use_by_others(domain.state.active)
        if not others:
            return False
        message = f"{_listed(others)} in use by others too: is it shared, or does the domain run elsewhere?"
        if self.order.min_age and not domain.state.active:
            raise Skipped(message)
        if settings.freeze == "required":
            raise BackupError(message, "a freeze is required, and holds still this domain alone")
        self.reporter.message(Level.WARNING, domain.name, message)
        return True


def require_ready(domain: Domain) -> None:
    """Raise BackupError if another moment is better."""
    if domain.state is State.BUSY:
        message = "the domain is starting, stopping or migrating, or another job is at work on it"
        raise TransientError(message, f"see virsh domjobinfo {domain.uuid}; the next run tries again")
    if domain.state is State.ELSEWHERE:
        raise DomainGone("the domain migrated to another node")


def _listed(images: Sequence[Image]) -> str:
    return f"{', '.join(map(str, images))} {'is' if len(images) == 1 else 'are'}"


def _told(stand: Standstill, count: int) -> str:
    text = f"{count} snapshot{'s' if count > 1 else ''} made, {stand.consistency.value}"
    return f"{text}, stood still for {stand.seconds:.2f} s" if stand.seconds else text
