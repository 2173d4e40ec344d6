"""Quiescing a domain for the moment of its snapshots, and thawing or resuming it whatever happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from ..errors import AlreadyFrozen, BackupError, CannotFreeze, FreezeFailed, TransientError
from ..hypervisor.connection import Hypervisor
from ..hypervisor.errors import HypervisorError
from ..hypervisor.guest_agent import is_silent
from ..hypervisor.guest_mounts import PartialFreeze
from ..model import Consistency, Domain, Level, State
from ..protocols import Reporter
from ..settings import Settings
from ..system.time_limit import CheckStop, never_stop
from ..system.undo import undone_by
from .freeze_notes import FreezeNotes, Method, Note
from .migration_watch import require_ready
from .other_group import OtherGroup
from .thaw import AGENT_JOB, CannotThawHere, Thaw, agent_timeout, gone_while_quiesced

SNAPSHOT_SHARE = 0.9  # of FREEZE_TIMEOUT: when the snapshots must be complete
GRACE = 1.0  # seconds after FREEZE_TIMEOUT in which the main process leaves the guest to its worker
EARLIER_NOTE = 5.0  # seconds to wait for the main process to thaw what an earlier backup left frozen

# The consistency of a domain that does not run. QEMU has flushed all disks when it was paused or saved, not
# when the guest crashed.
NOT_RUNNING = {
    State.SHUT_OFF: Consistency.OFFLINE,
    State.SAVED: Consistency.PAUSED,
    State.PAUSED: Consistency.PAUSED,
    State.SUSPENDED: Consistency.PAUSED,
    State.CRASHED: Consistency.CRASH,
}

REFUSED_HINT = (
    "permit guest-fsfreeze-freeze, -status and -thaw in the configuration of the guest's qemu-ga (Windows: is"
    ' VSS active?), or set freeze="never" in the domain\'s metadata'
)

TOO_LATE = "the snapshots took longer than FREEZE_TIMEOUT: the guest may have been thawed meanwhile"

FIRST_RETRY = 0.2  # seconds until a failed thaw or resume is retried; doubled up to the last
LAST_RETRY = 2.0


@dataclass
class Quiesced:
    """How a domain is quiesced, and for how long: `seconds` is final once it was thawed or resumed."""

    consistency: Consistency
    seconds_for_snapshots: float
    started: float = field(default_factory=time.monotonic)
    since: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    seconds: float = 0.0
    thawed: int = 0  # see Thaw: 0 if somebody else has thawed or resumed it
    late: bool = False  # whether it was quiesced for so long that others may have thawed or resumed it
    unanswered: bool = False  # whether the freeze or pause got no answer, and may still happen
    refused: bool = False  # whether the freeze or pause was refused as such: it has changed nothing

    @property
    def seconds_left(self) -> float:
        return self.seconds_for_snapshots - (time.monotonic() - self.started)


@dataclass(frozen=True)
class Quiescer:
    """Quiesces domains according to FREEZE and WITHOUT_FREEZE.

    `freeze_failed`: an earlier attempt of this run could not thaw the guest in time after a failed freeze. It
    is frozen again only if that is required: a slow hook in the guest would be as slow again. `check_stop`
    raises the reason to stop, which is heard until the guest is about to be quiesced.
    """

    hypervisor: Hypervisor
    notes: FreezeNotes
    settings: Settings
    reporter: Reporter
    freeze_failed: bool = False
    check_stop: CheckStop = never_stop

    @property
    def _other_group(self) -> OtherGroup:
        return OtherGroup(self.notes, self.settings, self.check_stop)

    @contextmanager
    def quiesced(self, domain: Domain) -> Iterator[Quiesced]:
        """Freeze or pause a running domain during the block; leave others as they are.

        Raises FreezeFailed if a required freeze fails, TransientError if a live run of another group has it
        quiesced, BackupError if the domain could not be thawed or resumed; its note then stays.
        """
        try:
            with self._quiesced(domain) as quiesced:
                yield quiesced
        except FreezeFailed as error:  # an agent may be restarting, or another program's freeze may end
            error.transient = error.transient or (
                domain.agent_channel and not isinstance(error, CannotFreeze)
            )
            raise

    @contextmanager
    def _quiesced(self, domain: Domain) -> Iterator[Quiesced]:
        if domain.state is not State.RUNNING:
            with self._unchanged(domain, domain.state) as quiesced:
                yield quiesced
        elif self._has_no_earlier_note(domain):
            with ExitStack() as stack:
                yield self._quiesce(domain, stack)
        else:
            yield self._despite_earlier_note(domain)

    @contextmanager
    def _unchanged(self, domain: Domain, state: State) -> Iterator[Quiesced]:
        """Leave a domain alone that does not run; if its state changes, it is only crash-consistent.

        Raises FreezeFailed then if a freeze is required: a retry can freeze it. Raises TransientError if a
        live run of another group has it paused.
        """
        if state is State.PAUSED:
            self._other_group.require_none_live(domain.uuid)
        quiesced = self._not_quiesced(NOT_RUNNING[state])
        yield quiesced
        if self.hypervisor.state(domain.uuid) is not state:
            quiesced.consistency = Consistency.CRASH
            message = f"the domain did not stay {state.value} while its snapshots were made"
            if self.settings.freeze == "required":
                failed = FreezeFailed(message)
                failed.transient = True  # whether it has an agent is known once it runs
                raise failed
            self.reporter.message(Level.WARNING, domain.name, message)

    def _quiesce(self, domain: Domain, stack: ExitStack) -> Quiesced:
        if self.settings.freeze == "required" or (self.settings.freeze == "auto" and not self.freeze_failed):
            try:
                return stack.enter_context(self._frozen(domain))
            except FreezeFailed as error:
                if isinstance(error, AlreadyFrozen):  # perhaps by another group, since we have waited for it
                    self._other_group.require_none_live(domain.uuid)
                self._require_staying(domain, error)
                # a paused domain cannot be thawed: never pause one that may be frozen
                if self.settings.freeze == "required" or self.notes.exists(domain.uuid):
                    raise
                self._report_not_frozen(domain, error)
                if isinstance(error, AlreadyFrozen):  # its owner could not thaw it while it is paused
                    return self._not_quiesced(Consistency.CRASH)
        if self.settings.without_freeze == "pause":
            return stack.enter_context(self._paused(domain))
        return self._not_quiesced(Consistency.CRASH)

    def _require_staying(self, domain: Domain, failed: FreezeFailed) -> None:
        """Raise BackupError if the domain migrates, or has migrated, which caused the failed freeze.

        Raises the failed freeze itself if that is not known, or if the guest may still be frozen: a retry
        must know of it.
        """
        try:
            self._current_state(domain)
        except HypervisorError as error:
            failed.transient = error.transient
            raise failed from error
        except BackupError as error:
            if self.notes.exists(domain.uuid):
                raise failed from error
            self._report_not_frozen(domain, failed)
            raise

    def _report_not_frozen(self, domain: Domain, error: FreezeFailed) -> None:
        level = Level.WARNING if domain.agent_connected else Level.INFO
        self.reporter.message(level, domain.name, f"not frozen: {error}")

    def _has_no_earlier_note(self, domain: Domain) -> bool:
        """Wait a while for the main process to remove an earlier backup's note; return whether it is gone.

        A new note would replace the old one, and nothing would ever thaw the guest.
        """
        self._other_group.wait(domain.uuid)
        limit = max(EARLIER_NOTE, self.settings.freeze_timeout) if self.freeze_failed else EARLIER_NOTE
        deadline = time.monotonic() + limit
        while self.notes.exists(domain.uuid):
            if time.monotonic() > deadline:
                return False
            self.check_stop()
            time.sleep(FIRST_RETRY)
        return not self.notes.of_other_group(domain.uuid)

    def _despite_earlier_note(self, domain: Domain) -> Quiesced:
        """Leave a guest as it is that may be frozen already: it must not be frozen or paused again.

        A crash-consistent backup is better than none. Raises FreezeFailed if a freeze is required,
        TransientError if a live run of another group has just begun to quiesce it.
        """
        self._other_group.require_none_live(domain.uuid)
        message = "the guest may still be frozen or paused by an earlier backup"
        path = self.notes.of_other_group(domain.uuid) or self.notes.path(domain.uuid)
        hint = "does its guest agent, or a freeze hook in the guest, hang?"
        hint = f"{hint} virsh domfsthaw {domain.uuid}; if the guest runs, remove {path}"
        if self.settings.freeze == "required":
            raise FreezeFailed(message, hint)
        self.reporter.message(Level.ERROR, domain.name, f"{message} (hint: {hint})")
        return self._not_quiesced(Consistency.CRASH)

    def _not_quiesced(self, consistency: Consistency) -> Quiesced:
        return Quiesced(consistency, self.settings.ceph_timeout)

    @contextmanager
    def _frozen(self, domain: Domain) -> Iterator[Quiesced]:
        partial = self._require_agent(domain)
        mountpoints = (partial.freeze,) if partial else ()
        self._current_state(domain)
        with self._undone_afterwards(domain, Method.FREEZE, Consistency.FILESYSTEM) as quiesced:
            try:
                with _refusal_recorded(quiesced):
                    count = self.hypervisor.freeze(domain, agent_timeout(self.settings), *mountpoints)
            except HypervisorError as error:
                if error.refused:
                    self._require_not_frozen(domain)
                    raise CannotFreeze(error.message, REFUSED_HINT) from error
                raise FreezeFailed(error.message, self._freeze_hint(error)) from error
            if count == 0:
                hint = "is a file system that supports freezing mounted in the guest?"
                raise CannotFreeze("the guest agent found no file system to freeze", hint)
            yield quiesced
        # another program may thaw it, or Windows does after its ten seconds: at an unknown moment
        self._check_unbroken(domain, quiesced, "the guest thawed before its snapshots were complete")

    @contextmanager
    def _paused(self, domain: Domain) -> Iterator[Quiesced]:
        if self._current_state(domain) is State.PAUSED:  # by an admin since: not ours to resume
            with self._unchanged(domain, State.PAUSED) as quiesced:
                yield quiesced
            return
        with self._undone_afterwards(domain, Method.PAUSE, Consistency.PAUSED) as quiesced:
            with _refusal_recorded(quiesced):
                self.hypervisor.pause(domain)
            yield quiesced
        self._check_unbroken(
            domain, quiesced, "the guest did not stay paused until its snapshots were complete"
        )

    def _check_unbroken(self, domain: Domain, quiesced: Quiesced, broken: str) -> None:
        """Count a domain that did not stay quiesced as crash-consistent. Raises FreezeFailed if required."""
        if quiesced.thawed and not quiesced.late:
            return
        quiesced.consistency = Consistency.CRASH
        message = TOO_LATE if quiesced.late else broken
        if self.settings.freeze == "required":
            raise FreezeFailed(message)
        self.reporter.message(Level.WARNING, domain.name, message)

    def _current_state(self, domain: Domain) -> State:
        """Return the domain's state; raise BackupError if it has begun to migrate, has migrated or restarted.

        It may have been listed minutes ago, if the cluster was silent meanwhile. A note that names another
        start of the domain than the one that is frozen would be taken for settled, and removed.
        """
        state = self.hypervisor.state(domain.uuid)
        require_ready(replace(domain, state=state))
        if self.hypervisor.instance(domain.uuid) != domain.instance:
            raise TransientError("the domain was shut off, or started anew, while its backup was prepared")
        return state

    @contextmanager
    def _undone_afterwards(
        self, domain: Domain, method: Method, consistency: Consistency
    ) -> Iterator[Quiesced]:
        """Record on disk what the block will do to the domain, and thaw or resume it after the block."""
        limit = self.settings.freeze_timeout
        possible = AGENT_JOB + agent_timeout(self.settings)
        note = self.notes.write(domain, method, limit + GRACE, possible)
        quiesced = Quiesced(consistency, SNAPSHOT_SHARE * limit)

        def undo() -> None:
            self.notes.mark_releasing(note, agent_timeout(self.settings) + GRACE)
            quiesced.thawed = self._undo(note, quiesced)
            quiesced.seconds = time.monotonic() - quiesced.started

        with undone_by(undo, self.reporter, domain.name):
            try:
                yield quiesced
            except BackupError as error:
                quiesced.unanswered = any(isinstance(one, TimeoutError) for one in _causes(error))
                raise
            # this process may have been stopped; others act by the note from then on
            quiesced.late = time.monotonic() > note.until

    def _undo(self, note: Note, quiesced: Quiesced) -> int:
        """Thaw or resume a domain, with retries for FREEZE_TIMEOUT seconds, then remove its note.

        Returns what Thaw has thawed. A domain that is gone or shut off needs no thaw. Raises BackupError if
        it may still be frozen or paused: its note stays, and main retries.
        """
        if quiesced.refused:  # who refuses to freeze or pause may refuse to thaw or resume, for ever
            self.notes.remove(note.uuid)
            return 0
        thaw = Thaw(note, self.hypervisor, self.settings, quiesced.unanswered)
        deadline = time.monotonic() + self.settings.freeze_timeout
        pause = FIRST_RETRY
        while True:
            try:
                if thaw.attempt():
                    break
            except CannotThawHere:
                self.notes.remove(note.uuid)
                raise
            except BackupError as error:
                if not isinstance(error, HypervisorError) or time.monotonic() > deadline:
                    raise thaw.failure(error) from error
            time.sleep(pause)
            pause = min(2 * pause, LAST_RETRY)
        self.notes.remove(note.uuid)
        if thaw.gone:
            self.reporter.message(Level.ERROR, note.name, gone_while_quiesced(note))
        return thaw.thawed

    def _require_not_frozen(self, domain: Domain) -> None:
        """Raise AlreadyFrozen if another program has frozen the guest since the probe.

        The agent of a frozen guest refuses to freeze in the same words as one that blocks the command.
        """
        with suppress(HypervisorError, CannotFreeze):
            self.hypervisor.probe_agent(domain, agent_timeout(self.settings), self.check_stop)

    def _freeze_hint(self, error: HypervisorError) -> str:
        """Return the likely cause of a freeze that failed although the agent had just answered."""
        if not is_silent(error):
            return "see the guest agent's log, and its freeze hooks, in the guest"
        seconds = agent_timeout(self.settings)
        cause = f"a freeze hook in the guest probably takes longer than {seconds} s, or hangs"
        return f"{cause}: see /etc/qemu/fsfreeze-hook.d there; it gets a third of FREEZE_TIMEOUT"

    def _require_agent(self, domain: Domain) -> PartialFreeze | None:
        """Raise FreezeFailed unless the agent answers, the guest is not frozen, and what to freeze is known.

        Returns what to freeze, None for all.
        """
        if not domain.agent_connected:
            raise FreezeFailed(
                "no guest agent is connected", "install and start qemu-guest-agent in the guest"
            )
        try:
            partial = self.hypervisor.probe_agent(domain, agent_timeout(self.settings), self.check_stop)
        except HypervisorError as error:
            raise FreezeFailed(error.message, "restart qemu-guest-agent in the guest") from error
        if partial:
            partial.require_known()
            text = f"not frozen, as they are, or may be, in files of the guest: {', '.join(partial.leave)}"
            self.reporter.message(Level.INFO, domain.name, text)
        return partial


@contextmanager
def _refusal_recorded(quiesced: Quiesced) -> Iterator[None]:
    """Record that the freeze or pause in the block was refused as such."""
    try:
        yield
    except HypervisorError as error:
        quiesced.refused = error.refused
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Give the error and all that caused it. With a TimeoutError, a call may still be carried out."""
    while error:
        yield error
        error = error.__cause__
