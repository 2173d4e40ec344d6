"""Waiting for the guest agent of a domain that has just started, such as after a power cut."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable

from ..errors import AlreadyFrozen, CannotFreeze
from ..hypervisor.connection import Hypervisor
from ..hypervisor.errors import HypervisorError
from ..model import Domain, State
from ..selection import effective
from ..settings import Settings
from ..system.time_limit import CheckStop
from .thaw import agent_timeout

POLL = 2.0  # seconds between two checks whether the agent answers


def boot_seconds_left(domain: Domain, settings: Settings) -> float:
    """Return for how many seconds more the agent of a domain may need to answer as it has just started."""
    if domain.state is not State.RUNNING or domain.started is None:
        return 0.0
    if effective(domain, settings).freeze == "never":
        return 0.0
    limit = settings.agent_boot_timeout
    # a start in the future: the clock was set back since
    return max(0.0, min(limit, domain.started + limit - time.time()))


def is_booting(domain: Domain, settings: Settings) -> bool:
    """Return whether the domain has just started, and its agent is not connected yet."""
    return not domain.agent_connected and boot_seconds_left(domain, settings) > 0


@dataclass(frozen=True)
class AgentWait:
    """Waits for the agent of a domain that has just started; `report` gets a message about it."""

    hypervisor: Hypervisor
    settings: Settings
    check_stop: CheckStop
    report: Callable[[str], None]

    def wait(self, domain: Domain) -> None:
        """Return as soon as the agent answers, the domain no longer runs, or its time has passed.

        Raises DomainGone, HypervisorError if libvirt does not answer, and the reason to stop.
        """
        deadline = time.monotonic() + boot_seconds_left(domain, self.settings)
        if time.monotonic() >= deadline or self._answers(domain):
            return
        seconds = deadline - time.monotonic()
        self.report(
            f"the domain has just started: waiting up to {seconds:.0f} s for its guest agent"
            " (AGENT_BOOT_TIMEOUT)"
        )
        while time.monotonic() < deadline:
            self._pause(min(POLL, deadline - time.monotonic()))
            domain = self.hypervisor.domain(domain.uuid, self.check_stop)
            if domain.state is not State.RUNNING or self._answers(domain):
                return

    def _answers(self, domain: Domain) -> bool:
        if not domain.agent_connected:
            return False
        try:
            self.hypervisor.probe_agent(domain, agent_timeout(self.settings), self.check_stop)
        except (AlreadyFrozen, CannotFreeze):  # it answers; the freeze reports it
            return True
        except HypervisorError:
            return False
        return True

    def _pause(self, seconds: float) -> None:
        self.check_stop()
        time.sleep(max(0.0, seconds))
        self.check_stop()
