"""Migrations that begin while a domain is quiesced: they would take the freeze or pause to another node."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Callable

from ..errors import BackupError, DomainGone, TransientError
from ..hypervisor.connection import Hypervisor
from ..model import Domain, Level, State
from ..protocols import Reporter

POLL = 0.1  # seconds between two checks for a migration


@dataclass(frozen=True)
class MigrationWatch:
    """Checks in a thread whether a running domain begins to migrate, or gets another libvirt job.

    `must_stay` returns whether the domain would arrive frozen or paused whatever we did: then its migration
    is cancelled. A freeze that is under way ends on the destination, and libvirt starts a domain there as it
    was when its migration began; nobody there would thaw or resume it.
    """

    domain: Domain
    hypervisor: Hypervisor
    reporter: Reporter
    must_stay: Callable[[], bool]
    _began: threading.Event = field(default_factory=threading.Event, init=False)
    _cancelled: threading.Event = field(default_factory=threading.Event, init=False)
    _ended: threading.Event = field(default_factory=threading.Event, init=False)

    def check(self) -> None:
        """Raise TransientError if one began: the guest has to be thawed or resumed at once."""
        if self._began.is_set():
            message = "a migration, or another libvirt job, began while the snapshots were made"
            raise TransientError(message, "the guest was thawed or resumed at once; the next run retries it")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch during the block. The thread is not waited for, as its call may hang."""
        if self.domain.state is State.RUNNING:
            threading.Thread(target=self._watch, name="migration", daemon=True).start()
        try:
            yield
        finally:
            self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(POLL):
            try:
                self._check()
            except DomainGone:
                return  # destroyed and undefined: its images are saved; a migration shows as a job before
            except BackupError:
                continue  # the thaw, which calls libvirt too, reports what is wrong with it

    def _check(self) -> None:
        state = self.hypervisor.state(self.domain.uuid)
        if state not in (State.BUSY, State.ELSEWHERE):
            return
        self._began.set()
        if state is not State.BUSY or not self.must_stay():
            return
        # again until it has ended: libvirt may have just begun it
        if self.hypervisor.cancel_migration(self.domain.uuid) and not self._cancelled.is_set():
            self._cancelled.set()
            text = "cancelled its migration, which began while the guest was being frozen or was paused"
            hint = "it would have arrived like that; start the migration again"
            self.reporter.message(Level.WARNING, self.domain.name, f"{text} (hint: {hint})")


def require_ready(domain: Domain) -> None:
    """Raise BackupError if the domain cannot be backed up in its present state."""
    if domain.state is State.BUSY:
        message = "the domain is starting, stopping or migrating, or another libvirt job is running on it"
        raise TransientError(message, f"see virsh domjobinfo {domain.uuid}; the next run retries it")
    if domain.state is State.ELSEWHERE:
        raise DomainGone("the domain migrated to another node")
