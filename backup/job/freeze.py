"""Holding a domain still for the moment of its snapshots, and letting it go whatever happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone

from ..errors import BackupError, FreezeFailed, FrozenAlready
from ..hypervisor.connection import Hypervisor
from ..hypervisor.errors import HypervisorError
from ..model import Consistency, Domain, Level, State
from ..protocols import Reporter
from ..settings import Settings
from ..system.undo import undone_by
from .freeze_notes import Hold, Journal, Note
from .thaw import AGENT_JOB, BeyondHelp, Thaw, agent_timeout

SNAPSHOT_SHARE = 0.9  # of FREEZE_TIMEOUT: when the snapshots have to be there
GRACE = 1.0  # seconds after FREEZE_TIMEOUT in which the main process leaves the guest to its worker
EARLIER_NOTE = 5.0  # seconds to wait for the main process to undo what an earlier backup has left

# What a domain that does not run is in itself. A QEMU has flushed all disks when it was paused or saved,
# not when the guest crashed.
QUIET = {
    State.SHUT_OFF: Consistency.OFFLINE,
    State.SAVED: Consistency.PAUSED,
    State.PAUSED: Consistency.PAUSED,
    State.SUSPENDED: Consistency.PAUSED,
    State.CRASHED: Consistency.CRASH,
}

FIRST_RETRY = 0.2  # seconds until a failed thaw or resume is tried again; doubled up to the last
LAST_RETRY = 2.0


@dataclass
class Standstill:
    """How still a domain stands, and for how long: `seconds` is final once it was let go."""

    consistency: Consistency
    seconds_for_snapshots: float
    started: float = field(default_factory=time.monotonic)
    since: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    seconds: float = 0.0
    thawed: int = 0  # file systems that were frozen until it was let go
    doubtful: bool = False  # whether the freeze or pause had no answer, and may still happen

    @property
    def seconds_left(self) -> float:
        return self.seconds_for_snapshots - (time.monotonic() - self.started)


@dataclass(frozen=True)
class Holder:
    """Holds domains still, as FREEZE and WITHOUT_FREEZE say."""

    hypervisor: Hypervisor
    journal: Journal
    settings: Settings
    reporter: Reporter

    @contextmanager
    def held_still(self, domain: Domain) -> Iterator[Standstill]:
        """Hold a running domain still during the block; leave others as they are.

        Raises FreezeFailed where a freeze is required and can't be had, BackupError where the domain
        could not be let go; the journal's note then stays.
        """
        if domain.state is not State.RUNNING:
            with self._left_as_it_is(domain, domain.state) as stand:
                yield stand
        elif self._is_dealt_with(domain):
            with ExitStack() as stack:
                yield self._hold(domain, stack)
        else:
            yield self._beside_an_earlier_note(domain)

    @contextmanager
    def _left_as_it_is(self, domain: Domain, state: State) -> Iterator[Standstill]:
        """Leave a domain alone that does not run; what it is worth depends on whether it stays like that."""
        stand = self._as_it_is(QUIET[state])
        yield stand
        if self.hypervisor.state(domain.uuid) is not state:
            stand.consistency = Consistency.CRASH
            message = f"the domain did not stay {state.value} while its snapshots were made"
            self.reporter.message(Level.WARNING, domain.name, message)

    def _hold(self, domain: Domain, stack: ExitStack) -> Standstill:
        if self.settings.freeze != "never":
            try:
                return stack.enter_context(self._frozen(domain))
            except FreezeFailed as error:
                # a paused domain can't be thawed: so never pause one that may be frozen
                if self.settings.freeze == "required" or self.journal.holds(domain.uuid):
                    raise
                level = Level.WARNING if domain.agent_connected else Level.INFO
                self.reporter.message(level, domain.name, f"not frozen: {error}")
                if isinstance(error, FrozenAlready):  # whoever it was could not thaw it while it is paused
                    return self._as_it_is(Consistency.CRASH)
        if self.settings.without_freeze == "pause":
            return stack.enter_context(self._paused(domain))
        return self._as_it_is(Consistency.CRASH)

    def _is_dealt_with(self, domain: Domain) -> bool:
        """Wait a while for the main process to undo what an earlier backup has left; tell if it did.

        A new note would take the old one's place, and nobody would ever thaw the guest.
        """
        deadline = time.monotonic() + EARLIER_NOTE
        while self.journal.holds(domain.uuid):
            if time.monotonic() > deadline:
                return False
            time.sleep(FIRST_RETRY)
        return True

    def _beside_an_earlier_note(self, domain: Domain) -> Standstill:
        """Leave a guest as it is that may be frozen: it could not be frozen, and must not be paused.

        Its backup is better than none. Raises FreezeFailed where a freeze is required.
        """
        message = "an earlier backup may have left the guest frozen or paused, and nobody can undo it yet"
        path = self.journal.path(domain.uuid)
        hint = f"does its guest agent run? virsh domfsthaw {domain.uuid}; if the guest runs, remove {path}"
        if self.settings.freeze == "required":
            raise FreezeFailed(message, hint)
        self.reporter.message(Level.ERROR, domain.name, f"{message} (hint: {hint})")
        return self._as_it_is(Consistency.CRASH)

    def _as_it_is(self, consistency: Consistency) -> Standstill:
        return Standstill(consistency, self.settings.ceph_timeout)

    @contextmanager
    def _frozen(self, domain: Domain) -> Iterator[Standstill]:
        self._require_agent(domain)
        with self._held(domain, Hold.FREEZE, Consistency.FILESYSTEM) as stand:
            try:
                count = self.hypervisor.freeze(domain, agent_timeout(self.settings))
            except HypervisorError as error:
                raise FreezeFailed(error.message, "see the guest agent's log in the guest") from error
            if count == 0:
                hint = "is one mounted in the guest, of a kind that can be frozen?"
                raise FreezeFailed("the guest agent found no file system to freeze", hint)
            yield stand
        if stand.thawed == 0:
            # somebody else thawed it, or Windows did after its ten seconds: nobody knows when
            stand.consistency = Consistency.CRASH
            message = "the guest was no longer frozen when it was to be thawed"
            if self.settings.freeze == "required":
                raise FreezeFailed(message)
            self.reporter.message(Level.WARNING, domain.name, message)

    @contextmanager
    def _paused(self, domain: Domain) -> Iterator[Standstill]:
        if self.hypervisor.state(domain.uuid) is State.PAUSED:  # by an admin since: not ours to resume
            with self._left_as_it_is(domain, State.PAUSED) as stand:
                yield stand
            return
        with self._held(domain, Hold.PAUSE, Consistency.PAUSED) as stand:
            self.hypervisor.pause(domain)
            yield stand

    @contextmanager
    def _held(self, domain: Domain, hold: Hold, consistency: Consistency) -> Iterator[Standstill]:
        """Note on disk what the block is about to do, and let the domain go after it."""
        limit = self.settings.freeze_timeout
        possible = AGENT_JOB + agent_timeout(self.settings)
        note = self.journal.write(domain, hold, limit + GRACE, possible)
        stand = Standstill(consistency, SNAPSHOT_SHARE * limit)

        def let_go() -> None:
            self.journal.releasing(note, agent_timeout(self.settings) + GRACE)
            stand.thawed = self._let_go(note, stand.doubtful)
            stand.seconds = time.monotonic() - stand.started

        with undone_by(let_go, self.reporter, domain.name):
            try:
                yield stand
            except BackupError as error:
                stand.doubtful = _unanswered(error)
                raise

    def _let_go(self, note: Note, doubtful: bool) -> int:
        """Thaw or resume a domain, for FREEZE_TIMEOUT seconds if need be, then erase its note.

        Returns how many file systems were frozen until now. A domain that is gone or shut off needs
        nothing. Raises BackupError if it may still be frozen or paused: the note stays, and main tries on.
        """
        thaw = Thaw(note, self.hypervisor, self.settings, doubtful)
        deadline = time.monotonic() + self.settings.freeze_timeout
        pause = FIRST_RETRY
        while True:
            try:
                if thaw.attempt():
                    break
            except BeyondHelp:
                self.journal.erase(note.uuid)
                raise
            except BackupError as error:
                if not isinstance(error, HypervisorError) or time.monotonic() > deadline:
                    raise thaw.failure(error) from error
            time.sleep(pause)
            pause = min(2 * pause, LAST_RETRY)
        self.journal.erase(note.uuid)
        return thaw.thawed

    def _require_agent(self, domain: Domain) -> None:
        """Raise FreezeFailed unless the agent answers and the guest is not frozen."""
        if not domain.agent_connected:
            raise FreezeFailed(
                "no guest agent is connected", "install and start qemu-guest-agent in the guest"
            )
        try:
            self.hypervisor.probe_agent(domain, agent_timeout(self.settings))
        except HypervisorError as error:
            raise FreezeFailed(error.message, "restart qemu-guest-agent in the guest") from error


def _unanswered(error: BaseException | None) -> bool:
    """Tell whether an error comes of a call that was given up, and goes on."""
    while error and not isinstance(error, TimeoutError):
        error = error.__cause__
    return error is not None
