"""Holding a domain still for the moment of its snapshots, and letting it go whatever happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone

from . import PROGRAM
from .cleanly import undone_by
from .errors import BackupError, DomainGone, FreezeFailed, FrozenAlready
from .hypervisor import Hypervisor
from .journal import Hold, Journal
from .libvirt_errors import HypervisorError
from .model import Consistency, Domain, Level, State
from .protocols import Reporter
from .settings import Settings

# Of FREEZE_TIMEOUT: what the guest agent gets for an answer, and when the snapshots have to be there.
AGENT_SHARE = 1 / 3
SNAPSHOT_SHARE = 0.9

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
        if self.journal.holds(domain.uuid):
            # a new note would take the old one's place, and nobody would ever let the guest go
            message = "the guest may still stand still since an earlier backup"
            raise BackupError(message, f"virsh domfsthaw {domain.uuid}; then {PROGRAM} cleanup")
        if domain.state is State.RUNNING:
            with ExitStack() as stack:
                yield self._hold(domain, stack)
            return
        stand = self._as_it_is(QUIET[domain.state])
        yield stand
        if self.hypervisor.state(domain.uuid) is not domain.state:
            stand.consistency = Consistency.CRASH
            message = f"the domain did not stay {domain.state.value} while its snapshots were made"
            self.reporter.message(Level.WARNING, domain.name, message)

    def let_go(self, domain: Domain, hold: Hold) -> int:
        """Thaw or resume a domain, for FREEZE_TIMEOUT seconds if need be, then erase its note.

        Returns how many file systems were frozen until now. A domain that is gone or shut off needs
        nothing. Raises BackupError if it may still stand still.
        """
        deadline = time.monotonic() + self.settings.freeze_timeout
        pause = FIRST_RETRY
        while True:
            try:
                count = self._release(domain, hold)
                break
            except DomainGone:
                count = 0
                break
            except HypervisorError as error:
                if time.monotonic() > deadline:
                    verb, command = ("frozen", "domfsthaw") if hold is Hold.FREEZE else ("paused", "resume")
                    message = f"the guest may still be {verb}: {error.message}"
                    raise BackupError(message, f"virsh {command} {domain.uuid}") from error
            time.sleep(pause)
            pause = min(2 * pause, LAST_RETRY)
        self.journal.erase(domain.uuid)
        return count

    def _release(self, domain: Domain, hold: Hold) -> int:
        state = self.hypervisor.state(domain.uuid)
        if state in (State.SHUT_OFF, State.CRASHED):
            return 0
        if state is State.ELSEWHERE:
            message = "the guest migrated to another node while it stood still"
            raise BackupError(message, f"on that node: virsh domfsthaw {domain.uuid}")
        if state is State.SAVED:
            message = "the guest was saved while it stood still, and will come back like that"
            raise BackupError(message, f"start it, then {PROGRAM} cleanup")
        if hold is Hold.FREEZE:
            return self.hypervisor.thaw(domain, self._agent_timeout)
        self.hypervisor.resume(domain)
        return 0

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

    def _as_it_is(self, consistency: Consistency) -> Standstill:
        return Standstill(consistency, self.settings.ceph_timeout)

    @contextmanager
    def _frozen(self, domain: Domain) -> Iterator[Standstill]:
        self._require_agent(domain)
        with self._held(domain, Hold.FREEZE, Consistency.FILESYSTEM) as stand:
            try:
                count = self.hypervisor.freeze(domain, self._agent_timeout)
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
        with self._held(domain, Hold.PAUSE, Consistency.PAUSED) as stand:
            self.hypervisor.pause(domain)
            yield stand

    @contextmanager
    def _held(self, domain: Domain, hold: Hold, consistency: Consistency) -> Iterator[Standstill]:
        """Note on disk what the block is about to do, and let the domain go after it."""
        self.journal.write(domain, hold)
        stand = Standstill(consistency, SNAPSHOT_SHARE * self.settings.freeze_timeout)

        def let_go() -> None:
            stand.thawed = self.let_go(domain, hold)
            stand.seconds = time.monotonic() - stand.started

        with undone_by(let_go, self.reporter, domain.name):
            yield stand

    def _require_agent(self, domain: Domain) -> None:
        """Raise FreezeFailed unless the agent answers and the guest is not frozen."""
        if not domain.agent_connected:
            raise FreezeFailed(
                "no guest agent is connected", "install and start qemu-guest-agent in the guest"
            )
        try:
            self.hypervisor.probe_agent(domain, self._agent_timeout)
        except HypervisorError as error:
            raise FreezeFailed(error.message, "restart qemu-guest-agent in the guest") from error

    @property
    def _agent_timeout(self) -> int:
        return max(1, int(AGENT_SHARE * self.settings.freeze_timeout))
