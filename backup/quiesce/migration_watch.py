"""Migrations that begin while a domain is quiesced: they would take the freeze or pause to another node."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Callable, Optional

from ..errors import DomainGone, TransientError
from ..hypervisor.connection import Hypervisor
from ..model import Domain, Level, State
from ..protocols import Reporter
from .freeze_notes import Method

POLL = 0.1  # seconds between two checks for a migration


@dataclass(frozen=True)
class MigrationWatch:
    """Checks in a thread whether a running domain begins to migrate, or gets another libvirt job.

    `binding` returns how the domain is quiesced if that cannot be undone at once, None if it can. Only such a
    migration is cancelled, as nobody on the destination would thaw or resume the guest.

    libvirt resumes no domain that migrates, and starts it there as it was when its migration began: a pause
    can only be undone without the migration. A frozen guest is thawed while it migrates, one that is being
    frozen as soon as the freeze has ended, which it mostly does while the destination is prepared. Only when
    memory is being sent already, the rest of the freeze may happen there.
    """

    domain: Domain
    hypervisor: Hypervisor
    reporter: Reporter
    binding: Callable[[], Optional[Method]]
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
            # not threading's Thread, whose start() waits for ever for a thread that had no memory to begin
            _thread.start_new_thread(self._watch, ())
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
            except Exception:  # libvirt refuses, which the thaw reports, or there is no memory for its call
                continue

    def _check(self) -> None:
        state = self.hypervisor.state(self.domain.uuid)
        if state not in (State.BUSY, State.ELSEWHERE):
            return
        self._began.set()
        method = self.binding()
        if state is not State.BUSY or method is None:
            return
        # again until it has ended: libvirt may have just begun it
        cancelled = self.hypervisor.cancel_migration(self.domain.uuid, sending=method is Method.FREEZE)
        if cancelled and not self._cancelled.is_set():
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
