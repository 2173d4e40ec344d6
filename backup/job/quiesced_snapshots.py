"""The restore point of a domain: its definition, and its snapshots, made while the guest is quiesced."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from typing import Callable, Optional

from ..errors import BackupError, DomainGone, Skipped, TransientError
from ..hypervisor.connection import Hypervisor
from ..hypervisor.firmware import of_guest
from ..hypervisor.nvram import require_written
from ..model import Consistency, Definition, Domain, Level
from ..protocols import Reporter
from ..quiesce.freeze import Quiesced, Quiescer
from ..quiesce.freeze_notes import FreezeNotes, Method
from ..quiesce.migration_watch import MigrationWatch, require_ready
from ..quiesce.other_group import OtherGroup
from ..selection import effective, require_complete, select_disks
from ..settings import Settings
from ..stored import RestorePoint
from ..system.stop_request import StopRequest
from ..system.time_limit import CheckStop, within
from .job_order import JobOrder
from .snapshots import DomainSnapshots, ImageUse, enumerated, not_open

# Seconds for a client to have an image open again after an OSD has restarted or taken it for dead.
CLIENT_LIMIT = 15.0
CLIENT_POLL = 1.0


@dataclass
class QuiescedSnapshots:
    """Makes a domain's snapshots while it is quiesced; `quiesced` is set from then on.

    `require_lock` waits for the domain's lock to be valid, and raises if it is lost.
    """

    order: JobOrder
    settings: Settings
    reporter: Reporter
    stop: StopRequest
    require_lock: Callable[[], None]
    quiesced: Optional[Quiesced] = field(default=None, init=False)

    @property
    def _notes(self) -> FreezeNotes:
        return FreezeNotes(self.settings.runtime_dir, self.settings.node_dir)

    def limit(self, domain: Domain) -> float:
        """Return the sum of the time limits of `take`, in seconds. Raises BackupError."""
        settings = effective(domain, self.settings)
        others = OtherGroup(self._notes, settings).seconds_left(domain.uuid)
        # twice as long where a run of another group has the guest frozen first
        return others + 4 * settings.freeze_timeout + 3 * settings.ceph_timeout

    def take(
        self,
        domain: Domain,
        hypervisor: Hypervisor,
        snapshots: DomainSnapshots,
        lock_places: tuple[str, ...],
    ) -> RestorePoint:
        """Make the snapshots while the domain is quiesced; return the restore point to save."""
        settings, notes = effective(domain, self.settings), self._notes
        quiescer = Quiescer(
            *(hypervisor, notes, settings, self.reporter),
            freeze_failed=self.order.freeze_failed,
            check_stop=self.stop.check,
        )
        # or a pause of its run would look like an admin's
        OtherGroup(notes, settings, self.stop.check).wait(domain.uuid)
        listed = _unchanged(domain, hypervisor, self.stop.check)
        domain = select_disks(listed, settings)
        domain, definition = self._with_definition(domain, hypervisor, settings)
        uses = self._uses_with_own(domain, hypervisor, snapshots)
        shared = self._in_use_by_others(uses, domain, hypervisor, settings)
        watch = MigrationWatch(domain, hypervisor, self.reporter, partial(self._binding, domain, notes))

        def check_stop() -> None:
            self.stop.check_leased()
            watch.check()

        with snapshots.images_open():
            self.require_lock()  # it may have taken long to open them
            with watch.watching(), quiescer.quiesced(domain) as quiesced:
                self.quiesced = quiesced
                snapshots.create(quiesced.seconds_left, check_stop)
                left = max(quiesced.seconds_left, 1)  # the snapshots may have taken all of it
                definition = hypervisor.with_current_state(domain, definition, left, check_stop)
                taken = datetime.now(timezone.utc)
        _require_no_new_disk(listed, hypervisor, self.stop.check)
        if domain.state.active and quiesced.consistency is not Consistency.PAUSED:  # a pause writes all
            for path, content in of_guest(definition):
                require_written(path, content)
        if shared or self._in_use_by_others(snapshots.uses(domain), domain, hypervisor, settings):
            quiesced.consistency = Consistency.CRASH
        self.reporter.message(Level.INFO, domain.name, _summary(quiesced, len(snapshots.snapshots)))
        return RestorePoint(
            run=self.order.run,
            host=socket.gethostname(),
            taken=taken,
            domain=domain,
            definition=definition,
            consistency=quiesced.consistency,
            frozen_seconds=quiesced.seconds,
            attempt=self.order.attempt,
            locks=lock_places,
        )

    def _with_definition(
        self, domain: Domain, hypervisor: Hypervisor, settings: Settings
    ) -> tuple[Domain, Definition]:
        """Return the domain with what is not saved of its definition's files, and the definition.

        Raises BackupError if the domain could not be restored completely.
        """
        check_stop = self.stop.check
        definition = hypervisor.definition(domain, check_stop)
        definition, unsaved = hypervisor.with_files(domain, definition, settings.max_file_size, check_stop)
        domain = select_disks(replace(domain, disks=(*domain.disks, *unsaved)), settings)
        require_complete(domain)
        return domain, definition

    def _binding(self, domain: Domain, notes: FreezeNotes) -> Optional[Method]:
        """Return how the domain is quiesced if it is being frozen, or is paused: see MigrationWatch."""
        if self.quiesced and self.quiesced.consistency is not Consistency.PAUSED:
            return None
        return next((note.method for note in notes.all() if note.uuid == domain.uuid), None)

    def _uses_with_own(
        self, domain: Domain, hypervisor: Hypervisor, snapshots: DomainSnapshots
    ) -> Sequence[ImageUse]:
        """Return who has the images open once the running domain has all open to which it writes.

        Raises TransientError if it does not: it writes to other images, or was cut off, or is ending.
        """
        deadline = time.monotonic() + CLIENT_LIMIT
        while True:
            uses = snapshots.uses(domain)
            missing = [one.image for one in uses if one.missing]
            if not missing:
                return uses
            _require_same_state(domain, hypervisor, self.stop.check)
            if time.monotonic() > deadline:
                raise not_open(missing, domain)
            self.stop.check()
            time.sleep(CLIENT_POLL)

    def _in_use_by_others(
        self, uses: Sequence[ImageUse], domain: Domain, hypervisor: Hypervisor, settings: Settings
    ) -> bool:
        """Return, after a warning, whether other clients may write to the images meanwhile.

        Raises Skipped if another node should back up the domain, TransientError if it migrates or that is not
        sure, BackupError if a freeze is required.
        """
        others = [one for one in uses if one.by_others]
        if not others:
            return False
        if domain.state.active:  # where a domain migrates to, its images are opened first
            require_ready(_current(domain, hypervisor, self.stop.check))
        question = "is it shared, or does the domain run elsewhere?"
        addresses = ", ".join(dict.fromkeys(address for one in others for address in one.addresses))
        listed = enumerated([one.image for one in others])
        message = f"{listed} in use by other clients too: {question} (open at {addresses})"
        of_another_node = self.order.min_age and not domain.state.active
        required = settings.freeze == "required"
        if (of_another_node or required) and self.order.attempt > 1:
            # perhaps the client of an earlier attempt whose worker was killed
            raise TransientError(message, "the cluster forgets a killed client within half a minute")
        if of_another_node:
            _require_same_state(domain, hypervisor, self.stop.check)  # or it is its own QEMU, by now
            raise Skipped(message)
        if required:
            raise BackupError(message, "a freeze is required, but stops the writes of this domain only")
        self.reporter.message(Level.WARNING, domain.name, message)
        return True


def _unchanged(listed: Domain, hypervisor: Hypervisor, check_stop: CheckStop) -> Domain:
    """Return the domain as it is now; it may have changed while the clusters were connected."""
    domain = hypervisor.domain(listed.uuid, check_stop)
    require_ready(domain)
    if (domain.disks, domain.override) != (listed.disks, listed.override):
        message = "the domain's definition was changed during the backup"
        raise TransientError(message, "the next run retries it")
    return domain


def _require_no_new_disk(listed: Domain, hypervisor: Hypervisor, check_stop: CheckStop) -> None:
    """Raise TransientError if the domain has got a disk since it was `listed`, so that it has no snapshot.

    A freeze may take long. One that was detached does no harm, nor does a domain that has ended.
    """
    try:
        now = hypervisor.domain(listed.uuid, check_stop)
    except DomainGone:
        return
    new = [disk for disk in now.disks if disk not in listed.disks and disk.counts]
    if new:
        message = f"{', '.join(map(str, new))}: attached or changed while the snapshots were made"
        raise TransientError(message, "a retry, or the next run, saves the domain with it")


def _current(domain: Domain, hypervisor: Hypervisor, check_stop: CheckStop) -> Domain:
    """Return the domain with the state that it has now."""
    return replace(domain, state=within(math.inf, partial(hypervisor.state, domain.uuid), check_stop))


def _require_same_state(domain: Domain, hypervisor: Hypervisor, check_stop: CheckStop) -> None:
    """Raise TransientError if the domain is ending, or has ended, Skipped if it migrated away."""
    current = _current(domain, hypervisor, check_stop)
    require_ready(current)
    if current.state is not domain.state:
        message = f"the domain is {current.state.value} by now, it was {domain.state.value}"
        raise TransientError(message, "a retry saves it as it is")


def _summary(quiesced: Quiesced, count: int) -> str:
    text = f"{count} snapshot{'s' if count > 1 else ''} made, {quiesced.consistency.value}"
    return f"{text}, quiesced for {quiesced.seconds:.2f} s" if quiesced.seconds else text
