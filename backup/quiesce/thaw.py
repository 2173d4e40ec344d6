"""Thawing or resuming one guest: what an attempt does, and when the guest provably runs."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Optional

from ..command import COMMAND
from ..errors import AlreadyFrozen, BackupError, CannotFreeze, DomainGone
from ..hypervisor.connection import Hypervisor
from ..hypervisor.connections import running_at
from ..hypervisor.errors import HypervisorError
from ..hypervisor.guest_agent import is_silent
from ..model import Domain, State
from ..settings import Settings
from ..system.process_group import ProcessId, process_id, sees_own_pids
from .freeze_notes import FreezeNotes, Method, Note

AGENT_SHARE = 1 / 3  # of FREEZE_TIMEOUT: what the guest agent gets for an answer
AGENT_JOB = 30  # seconds that libvirt lets a call wait for another one of the same agent (qemu_domainjob.c)
CHECK_AGAIN = 1.0  # seconds between two checks for a freeze that may still happen


class CannotThawHere(BackupError):
    """This node cannot thaw or resume the guest any more."""


def _own() -> Optional[ProcessId]:
    """Return this process as an owner of notes."""
    return process_id(os.getpid()) if sees_own_pids() else None


def gone_while_quiesced(note: Note) -> str:
    """Return the message for a domain that no known libvirt has any more."""
    hint = f"if it migrated, on its new node: virsh domfsthaw {note.uuid}; virsh resume {note.uuid}"
    return f"the domain is gone; a backup may have left it frozen or paused (hint: {hint})"


def agent_timeout(settings: Settings) -> int:
    """Return the seconds that the guest agent gets for an answer."""
    return max(1, int(AGENT_SHARE * settings.freeze_timeout))


@dataclass
class Thaw:
    """Thaws or resumes one domain. `thawed` counts file systems that were frozen until then, or the pause.

    `unanswered`: this process's own call for the freeze or pause got no answer, and may still be carried out.
    `gone`: no known libvirt has the domain any more. `answered`: when libvirt first answered that nothing is
    frozen or paused.
    """

    note: Note
    hypervisor: Hypervisor
    settings: Settings
    unanswered: bool = False
    thawed: int = 0
    gone: bool = False
    answered: float = math.inf

    def attempt(self) -> bool:
        """Try once; return whether the guest provably runs, so that the note can be removed.

        That is not sure while a freeze or pause of another process may still happen: it may have been killed
        while libvirt let its call wait. Raises HypervisorError if another attempt may succeed,
        CannotThawHere if none on this node will, another BackupError while the domain cannot be thawed.
        """
        uuid = self.note.uuid
        try:
            state = self.hypervisor.state(uuid)
            if state is not State.ELSEWHERE:
                # a busy one may be getting back the memory that it had when it was quiesced
                restarted = state is not State.BUSY and self._was_restarted()
                return self._undo(self.hypervisor, state, restarted)
        except DomainGone:
            state = State.SHUT_OFF
        with suppress(DomainGone):
            return self._undo_elsewhere()
        if state is State.ELSEWHERE:
            message = "the guest migrated to another node while it was frozen or paused"
            raise CannotThawHere(message, f"on that node: virsh domfsthaw {uuid}; virsh resume {uuid}")
        self.gone = True
        return True

    def undo_elsewhere(self, domain: Domain, unreachable: BackupError) -> None:
        """Thaw or resume the domain that was found here while its own libvirt cannot be reached.

        Raises `unreachable` unless it runs here, another BackupError if another attempt may succeed.
        """
        if not domain.state.active or domain.state is State.BUSY:
            raise unreachable
        # the agent of a frozen guest stays connected when it migrates: this one was started anew
        if self.note.method is Method.PAUSE or domain.agent_connected:
            try:
                self._undo(self.hypervisor, domain.state, restarted=False)
            except BackupError as error:
                raise self.failure(error) from error

    def failure(self, error: BackupError) -> BackupError:
        """Return an attempt's error with its consequence for the guest."""
        if not isinstance(error, HypervisorError):
            return error
        frozen = self.note.method is Method.FREEZE
        state, command = ("frozen", "domfsthaw") if frozen else ("paused", "resume")
        hint = f"virsh {command} {self.note.uuid}"
        if frozen and is_silent(error):
            hint += "; a freeze hook in the guest may still run, or hang: end it, or restart its guest agent"
        return BackupError(f"the guest may still be {state}: {error.message}", hint)

    def _undo_elsewhere(self) -> bool:
        """Thaw or resume it at another libvirt of LIBVIRT_URI, if it runs there now. Raises DomainGone."""
        others = [uri for uri in self.settings.libvirt_uris if uri != self.hypervisor.uri]
        with running_at(self.note.uuid, others, self.settings.libvirt_timeout) as (hypervisor, domain):
            return self._undo(hypervisor, domain.state, restarted=False)

    def _was_restarted(self) -> bool:
        """Return whether the domain was started anew: then the note's owner has not frozen or paused it."""
        instance = self.hypervisor.instance(self.note.uuid)
        return -1 not in (instance, self.note.instance) and instance != self.note.instance

    def _undo(self, hypervisor: Hypervisor, state: State, restarted: bool) -> bool:
        if state in (State.SHUT_OFF, State.CRASHED):
            return True
        if state is State.SAVED:
            FreezeNotes(self.settings.runtime_dir).forget_instance(self.note)
            message = "the guest was saved while it was frozen or paused, and will start like that"
            raise BackupError(message, f"start it, then {COMMAND} cleanup")
        if self.note.method is Method.PAUSE:
            if not restarted:
                self._keep_here(hypervisor, state)
                self.thawed += state is State.PAUSED  # a job hides whether it still is
                hypervisor.resume(self._domain)
            return restarted or state is State.PAUSED or self._is_final()
        try:
            self.thawed += hypervisor.thaw(self._domain, agent_timeout(self.settings))
        except HypervisorError as error:
            if restarted:  # a guest saved while frozen, and restored, can be thawed
                return True
            self._keep_here(hypervisor, state)
            if not (error.refused and self._is_thawed(hypervisor)):
                raise
        return restarted or self.thawed > 0 or self._is_final()

    def _is_thawed(self, hypervisor: Hypervisor) -> bool:
        """Return whether the guest's agent, which refuses to thaw, does what none does while it is frozen.

        It refuses to freeze too, so that nothing was frozen; and it would never thaw anything.
        """
        try:
            hypervisor.probe_agent(self._domain, agent_timeout(self.settings))
        except CannotFreeze:
            return True
        except (AlreadyFrozen, HypervisorError):
            return False
        return True

    def _keep_here(self, hypervisor: Hypervisor, state: State) -> None:
        """Cancel a migration with which the guest would arrive frozen or paused at another node.

        Only while the note is new: what cannot be thawed for longer must not bind the domain to this node.
        """
        if state is State.BUSY and time.monotonic() <= self.note.possible:
            hypervisor.cancel_migration(self.note.uuid)

    def _is_final(self) -> bool:
        """Return whether no freeze or pause of the note can happen any more, as libvirt has just answered.

        Our own calls that were answered are over; another process's may still wait in libvirt, which may have
        been stopped until now: then it may answer us before it carries them out.
        """
        if self.note.owner is not None and self.note.owner == _own() and not self.unanswered:
            return True
        now = time.monotonic()
        self.answered = min(self.answered, now)
        return now > max(self.note.possible, self.answered + CHECK_AGAIN)

    @property
    def _domain(self) -> Domain:
        return Domain(self.note.uuid, self.note.name, State.RUNNING, (), uri=self.note.uri)
