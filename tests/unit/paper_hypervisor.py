"""A hypervisor with one domain on paper: stands in for libvirt, QEMU and the guest agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Callable

from backup.errors import BackupError, DomainGone
from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.errors import HypervisorError
from backup.hypervisor.guest_mounts import PartialFreeze
from backup.model import Definition, Disk, Domain, State
from backup.quiesce.freeze_notes import FreezeNotes
from backup.system.time_limit import CheckStop, never_stop


class PaperHypervisor(Hypervisor):
    """Knows whether its domain is frozen or paused, and refuses what the real ones refuse.

    Asserts two promises in every test: no guest is quiesced without a note on disk, and a frozen domain is
    never paused, as it could not be thawed then.
    """

    def __init__(self, domain: Domain, notes: FreezeNotes) -> None:
        self.listed = domain
        self.notes = notes
        self.frozen = False
        self.paused = False
        self.file_systems = 2
        self.asked: list[str] = []
        self.agent_timeouts: set[int] = set()
        self.probe_error: BackupError | None = None
        self.freeze_error: HypervisorError | None = None
        self.freezes_all_the_same = False  # as an agent does that answers too late
        self.pause_error: HypervisorError | None = None
        self.failing_thaws = 0
        self.thaw_error: HypervisorError | None = None  # of all thaws
        self.failing_resumes = 0
        self.gone = False
        self.cancelled = 0  # migrations
        self.sends_memory = True  # while it migrates
        self.closed = False
        self.partial: PartialFreeze | None = None
        self.mountpoints: Sequence[str] = ()  # of the last freeze
        self.then: Domain | None = None  # the domain from the second listing on
        self.uri = domain.uri

    def __exit__(self, *_: object) -> None:
        self.closed = True

    @property
    def moves(self) -> bool:
        return not self.frozen and not self.paused

    def domain(self, uuid: str, check_stop: Callable[[], None] = lambda: None) -> Domain:
        if self.gone or uuid != self.listed.uuid:
            raise DomainGone("the domain is no longer defined")
        found, self.listed = self.listed, self.then or self.listed
        return replace(found, state=State.PAUSED) if self.paused else found

    def definition(self, domain: Domain, check_stop: CheckStop = never_stop) -> Definition:
        return Definition(f"<domain>{domain.name}</domain>")

    def with_files(
        self, domain: Domain, definition: Definition, limit: int, check_stop: CheckStop = never_stop
    ) -> tuple[Definition, tuple[Disk, ...]]:
        return definition, ()

    def with_current_state(
        self, domain: Domain, definition: Definition, limit: float, check_stop: CheckStop = never_stop
    ) -> Definition:
        return definition

    def state(self, uuid: str) -> State:
        return self.domain(uuid).state

    def cancel_migration(self, uuid: str, sending: bool = False) -> bool:
        assert self.state(uuid) is State.BUSY
        if sending and not self.sends_memory:
            return False
        self.listed = replace(self.listed, state=State.RUNNING)
        self.cancelled += 1
        return True

    def instance(self, uuid: str) -> int:
        return self.domain(uuid).instance

    def probe_agent(
        self, domain: Domain, timeout: int, check_stop: CheckStop = never_stop
    ) -> PartialFreeze | None:
        self._ask("probe", timeout)
        check_stop()
        if self.probe_error:
            raise self.probe_error
        return self.partial

    def freeze(self, domain: Domain, timeout: int, mountpoints: Sequence[str] = ()) -> int:
        self._ask("freeze", timeout)
        self.mountpoints = mountpoints
        self._require_note()
        if self.frozen:
            raise HypervisorError("the guest is frozen already")
        if self.freeze_error:
            self.frozen = self.freezes_all_the_same
            raise self.freeze_error
        self.frozen = self.file_systems > 0
        return self.file_systems

    def thaw(self, domain: Domain, timeout: int) -> int:
        self._ask("thaw", timeout)
        self._require_note()
        if self.thaw_error:
            raise self.thaw_error
        if self.failing_thaws:
            self.failing_thaws -= 1
            raise HypervisorError("the guest agent does not answer")
        thawed = self.file_systems if self.frozen else 0
        self.frozen = False
        return thawed

    def pause(self, domain: Domain) -> None:
        self._ask("pause")
        self._require_note()
        assert not self.frozen, "paused while frozen: it could not be thawed any more"
        if self.pause_error:
            raise self.pause_error
        self.paused = True

    def resume(self, domain: Domain) -> None:
        self._ask("resume")
        if self.failing_resumes:
            self.failing_resumes -= 1
            raise HypervisorError("cannot resume the domain")
        self.paused = False

    def _ask(self, what: str, timeout: int | None = None) -> None:
        self.asked.append(what)
        if timeout is not None:
            self.agent_timeouts.add(timeout)

    def _require_note(self) -> None:
        assert self.notes.exists(self.listed.uuid), "without a note on disk"
