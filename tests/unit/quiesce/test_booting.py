"""backup/quiesce/booting.py: the agent of a domain that has just started gets time to answer."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from backup.errors import AlreadyFrozen, BackupError, CannotFreeze, Interrupted
from backup.hypervisor.errors import HypervisorError
from backup.model import Domain, Override, State
from backup.quiesce import booting
from backup.quiesce.booting import AgentWait
from backup.quiesce.freeze_notes import FreezeNotes

from ..paper_hypervisor import PaperHypervisor
from ..raising import raises
from ..samples import domain, settings

NOW = 1_000_000.0
SILENT = HypervisorError("the guest agent does not answer", code=86)


class Booting:
    """A domain that started `age` seconds ago; `comes` is called at each pause, with the hypervisor."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hypervisor = PaperHypervisor(domain(), FreezeNotes(str(directory)))
        self.monkeypatch = monkeypatch
        self.slept = 0.0
        self.said: list[str] = []
        self.comes: Callable[[], None] = lambda: None
        monkeypatch.setattr(time, "time", lambda: NOW + self.slept)
        monkeypatch.setattr(time, "monotonic", lambda: 5.0 + self.slept)
        monkeypatch.setattr(time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.comes()

    def wait(
        self, age: float | None, check_stop: Callable[[], None] = lambda: None, **changes: object
    ) -> int:
        started = None if age is None else NOW - age
        self.hypervisor.listed = self.become(started=started, **{"agent_connected": False, **changes})
        waits = AgentWait(self.hypervisor, settings(), check_stop, self.said.append)
        waits.wait(self.hypervisor.listed)
        return round(self.slept)

    def become(self, **changes: Any) -> Domain:
        self.hypervisor.listed = replace(self.hypervisor.listed, **changes)
        return self.hypervisor.listed


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Booting:
    return Booting(tmp_path, monkeypatch)


def test_an_agent_that_answers_within_the_time_is_waited_for(guest: Booting) -> None:
    def connect() -> None:
        if guest.slept > 40:
            guest.become(agent_connected=True)

    guest.comes = connect
    assert guest.wait(20) == 42
    assert guest.said == [
        "the domain has just started: waiting up to 280 s for its guest agent (AGENT_BOOT_TIMEOUT)"
    ]


def test_an_agent_that_is_connected_and_silent_is_waited_for_too(guest: Booting) -> None:
    guest.hypervisor.probe_error = SILENT

    def answer() -> None:
        guest.hypervisor.probe_error = None if guest.slept > 9 else SILENT

    guest.comes = answer
    assert guest.wait(0, agent_connected=True) == 10


def test_a_guest_without_an_agent_costs_no_more_than_the_time(guest: Booting) -> None:
    assert guest.wait(100) == 200


@pytest.mark.parametrize(
    ("age", "changes"),
    [
        (400, {}),
        (None, {}),
        (0, {"agent_connected": True}),
        (0, {"state": State.SHUT_OFF}),
        (0, {"state": State.PAUSED}),
        (0, {"override": Override(freeze="never")}),
    ],
    ids=["long up", "unknown", "answers", "shut off", "paused", "no freeze wanted"],
)
def test_other_domains_are_not_waited_for(guest: Booting, age: float | None, changes: dict[str, Any]) -> None:
    assert guest.wait(age, **changes) == 0
    assert guest.said == []


def test_a_guest_that_another_program_has_frozen_answers(guest: Booting) -> None:
    guest.hypervisor.probe_error = AlreadyFrozen("another program has already frozen the guest")
    assert guest.wait(0, agent_connected=True) == 0


def test_a_guest_that_must_not_be_frozen_answers(guest: Booting) -> None:
    """It is paused, and saved, as it is later."""
    guest.hypervisor.probe_error = CannotFreeze("its file systems cannot be listed")
    assert guest.wait(0, agent_connected=True) == 0


def test_a_clock_that_was_set_back_makes_the_time_no_longer(guest: Booting) -> None:
    assert guest.wait(-86400) == 300


def test_a_domain_that_shuts_down_meanwhile_is_not_waited_for(guest: Booting) -> None:
    def shut_down() -> None:
        guest.become(state=State.SHUT_OFF)

    guest.comes = shut_down
    assert guest.wait(0) == 2


def test_a_request_to_stop_ends_it(guest: Booting) -> None:
    def check_stop() -> None:
        if guest.slept > 3:
            raise Interrupted("stopped by SIGTERM", 15)

    with raises("stopped by SIGTERM", BackupError):
        guest.wait(0, check_stop)
    assert guest.slept <= 2 * booting.POLL


def test_a_request_to_stop_is_heard_while_a_silent_agent_is_asked(guest: Booting) -> None:
    def check_stop() -> None:
        if guest.hypervisor.asked:
            raise Interrupted("stopped by SIGTERM", 15)

    with raises("stopped by SIGTERM", BackupError):
        guest.wait(0, check_stop, agent_connected=True)
    assert (guest.hypervisor.asked, guest.slept) == (["probe"], 0)
