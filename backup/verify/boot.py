"""Boots the isolated copy of a domain, and waits until its guest agent answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Callable, Optional

from ..errors import BackupError, DomainGone, TransientError
from ..hypervisor.connection import Hypervisor
from ..hypervisor.domain_xml import AGENT_CHANNEL
from ..hypervisor.errors import HypervisorError
from ..hypervisor.guest_mounts import Mount
from ..model import Level, State
from ..protocols import Reporter
from ..restore.domain import RestoredDomain
from ..restore.written_files import remove_left
from ..settings import Settings
from ..stored import SavedDomain
from ..system.stop_request import StopRequest

POLL = 0.5  # seconds between two checks of a booting guest
PROBE_LIMIT = 5  # seconds for the agent's answer
SILENT = "the agent of the restored guest did not answer"


@contextmanager
def isolated_copy(
    saved: SavedDomain, settings: Settings, reporter: Reporter, stop: StopRequest
) -> Iterator[RestoredDomain]:
    """Connect to the first libvirt during the block, remove leftovers there; return a drill's domain."""
    with Hypervisor(settings.libvirt_uris[0], settings.libvirt_timeout, stop.check) as hypervisor:
        remove_left(settings.state_dir, {hypervisor.uri: hypervisor}.get, reporter)
        name = f"{saved.name}-drill"
        yield RestoredDomain.from_saved(saved, hypervisor, name, True, False, reporter, settings.state_dir)


@dataclass(frozen=True)
class Booted:
    """A guest whose agent has answered. `mounts` is None if the agent does not list them."""

    mounts: Optional[Sequence[Mount]]


@dataclass(frozen=True)
class Boot:
    """Waits for a guest that has been started, for `limit` seconds.

    `check` raises BackupError if the guest cannot go on, `check_end` if nothing follows from what it has done
    when its time is up; that gets whether it has an agent. `needs_mounts`: it has booted only when it has
    mounted a file system.
    """

    domain: RestoredDomain
    limit: int
    stop: StopRequest
    check: Callable[[], None] = lambda: None
    needs_mounts: bool = False
    check_end: Callable[[bool], None] = lambda _has_agent: None

    def wait(self, xml: str) -> Booted | None:
        """Return when the agent answers, None if the domain has none and still runs. Raises BackupError."""
        deadline, has_agent = time.monotonic() + self.limit, AGENT_CHANNEL in xml
        connection = self.domain.hypervisor.connection_number
        lost: HypervisorError | None = None  # the connection, since the last answer
        booted, late = None, False
        while not late:
            late = time.monotonic() >= deadline  # then it is asked for the last time
            self.stop.check()
            self.check()
            try:
                booted, lost = self._booted(has_agent), None
                if booted and (booted.mounts or booted.mounts is None or not self.needs_mounts):
                    return booted
            except DomainGone as error:  # a transient domain: libvirt forgets it when it ends
                if self.domain.hypervisor.connection_number != connection:
                    raise TransientError(
                        "libvirt was restarted, which has ended the drill's guest"
                    ) from error
                raise self._not_booted("it has ended") from error
            except HypervisorError as error:
                if not error.transient:
                    raise
                lost = error
            time.sleep(POLL)
        if lost:
            raise lost
        self.check_end(has_agent)
        if has_agent:
            raise self._silent(booted)
        text = f"still running after {self.limit} s; boot not confirmed, as the guest has no agent"
        self.domain.reporter.message(Level.WARNING, self.domain.saved.name, text)
        return None

    def _booted(self, has_agent: bool) -> Booted | None:
        """Ask the agent, if it is connected. Raises BackupError if the guest does not run."""
        hypervisor = self.domain.hypervisor
        found = hypervisor.domain(self.domain.uuid, self.stop.check)
        if found.state is not State.RUNNING:
            self.check()  # it may know why
            raise self._not_booted(f"it is {found.state.value}")
        if has_agent and found.agent_connected:
            with suppress(HypervisorError):  # it is just starting
                return Booted(hypervisor.mounts(found, PROBE_LIMIT, self.stop.check))
        return None

    def _silent(self, booted: Booted | None) -> BackupError:
        """Return the error of a guest whose agent did not answer, or has listed no file system."""
        what = "the restored guest mounted no file system" if booted else SILENT
        return BackupError(
            f"{what} within {self.limit} s",
            "restore it as a copy and check its console; see DRILL_BOOT_TIMEOUT",
        )

    def _not_booted(self, what: str) -> BackupError:
        hint = f"see /var/log/libvirt/qemu/{self.domain.name}.log"
        return BackupError(f"the restored guest did not boot: {what}", hint)
