"""backup/verify/boot.py: when a guest has booted, and when it has not."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Union, cast

import pytest

from backup.errors import BackupError, DomainGone, Interrupted, TransientError
from backup.hypervisor.errors import HypervisorError
from backup.hypervisor.guest_mounts import Mount
from backup.model import Domain, Level, State
from backup.restore.domain import RestoredDomain
from backup.system.stop_request import StopRequest
from backup.verify import boot
from backup.verify.boot import Boot, Booted

from ..raising import raises
from ..recorder import Recorder
from ..samples import UUID, domain

AGENT = "<channel><target name='org.qemu.guest_agent.0'/></channel>"
ROOT: Mount = ("/", "vda1", "ext4", ["vda"])
SILENT = HypervisorError("the guest agent does not answer", code=86)
LOST = HypervisorError("end of file while reading data", code=38)
SLOW = HypervisorError("no answer within 60 s", code=39)
RESTART = HypervisorError("cannot connect to libvirt", code=38)

Answer = Union[State, BackupError]


@dataclass
class Guest:
    """Has these states, one after the other, and its agent these answers; the last ones repeat."""

    states: Sequence[Answer] = (State.RUNNING,)
    answers: Sequence[Union[Sequence[Mount], BackupError, None]] = ([ROOT],)
    connected: bool = True
    asked: list[str] = field(default_factory=list)
    connection_number: int = 1

    def domain(self, uuid: str, check_stop: object) -> Domain:
        self.asked.append("domain")
        found = self.states[min(self.asked.count("domain"), len(self.states)) - 1]
        if isinstance(found, BackupError):
            self.connection_number += found is RESTART
            raise found
        return domain(uuid=uuid, state=found, agent_connected=self.connected)

    def mounts(self, of: Domain, timeout: int, check_stop: object) -> Union[Sequence[Mount], None]:
        self.asked.append("mounts")
        found = self.answers[min(self.asked.count("mounts"), len(self.answers)) - 1]
        if isinstance(found, BackupError):
            self.connection_number += found is LOST
            raise found
        return found

    def wait(self, xml: str = AGENT, stop: StopRequest | None = None, **changes: object) -> Booted | None:
        self.reporter = Recorder()
        paper = cast(RestoredDomain, _PaperDomain(self, self.reporter))
        return Boot(paper, 1, stop or StopRequest(), **changes).wait(xml)  # type: ignore[arg-type]


@dataclass
class _Saved:
    name: str = "web"


@dataclass
class _PaperDomain:
    hypervisor: Guest
    reporter: Recorder
    uuid: str = UUID
    name: str = "web-drill"
    saved: _Saved = field(default_factory=_Saved)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "POLL", 0.01)


@pytest.mark.parametrize("answers", [[[ROOT]], [SILENT, SILENT, [ROOT]]])
def test_a_guest_has_booted_when_its_agent_answers(answers: Sequence[BackupError]) -> None:
    assert Guest(answers=answers).wait() == Booted([ROOT])


def test_an_agent_that_lists_no_mounts_has_answered() -> None:
    assert Guest(answers=[None]).wait(needs_mounts=True) == Booted(None)


def test_an_agent_that_does_not_answer_is_a_failure() -> None:
    with raises("the agent of the restored guest did not answer within 1 s"):
        Guest(connected=False).wait()


def test_a_guest_without_a_file_system_has_not_booted_where_that_is_needed() -> None:
    assert Guest(answers=[[]]).wait() == Booted([])
    assert Guest(answers=[[], [ROOT]]).wait(needs_mounts=True) == Booted([ROOT])
    with raises("the restored guest mounted no file system within 1 s"):
        Guest(answers=[[]]).wait(needs_mounts=True)


def test_a_guest_without_an_agent_is_not_confirmed() -> None:
    guest = Guest()
    assert guest.wait("<domain/>") is None
    assert guest.reporter.told(Level.WARNING) == [
        "still running after 1 s; boot not confirmed, as the guest has no agent"
    ]
    assert "mounts" not in guest.asked


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([State.RUNNING, State.PAUSED], "the restored guest did not boot: it is paused"),
        ([State.CRASHED], "the restored guest did not boot: it is crashed"),
        ([State.RUNNING, DomainGone("gone")], "the restored guest did not boot: it has ended"),
    ],
)
def test_a_guest_that_does_not_run_has_not_booted(states: Sequence[Answer], message: str) -> None:
    with raises(message):
        Guest(states, connected=False).wait()


def test_what_is_known_of_a_guest_that_does_not_run_is_the_reason() -> None:
    checks: list[None] = []

    def check() -> None:
        checks.append(None)
        if len(checks) > 1:  # after the state was asked
            raise BackupError("the pack is missing")

    with raises("the pack is missing"):
        Guest([State.PAUSED]).wait(check=check)


def test_a_restart_of_libvirt_is_waited_for_and_proves_nothing() -> None:
    assert Guest([State.RUNNING, RESTART, RESTART, State.RUNNING]).wait() == Booted([ROOT])
    with raises("libvirt was restarted, which has ended the drill's guest", TransientError):
        Guest([State.RUNNING, RESTART, DomainGone("gone")], connected=False).wait()
    with raises("cannot connect to libvirt", HypervisorError):
        Guest([State.RUNNING, RESTART], connected=False).wait("<domain/>")


def test_a_restart_of_libvirt_during_a_call_of_the_agent_proves_nothing() -> None:
    with raises("libvirt was restarted, which has ended the drill's guest", TransientError):
        Guest([State.RUNNING, DomainGone("gone")], [LOST]).wait()


def test_a_libvirt_that_was_slow_does_not_excuse_a_guest_that_ends() -> None:
    with raises("the restored guest did not boot: it has ended"):
        Guest([SLOW, State.RUNNING, DomainGone("gone")], connected=False).wait()


@pytest.mark.parametrize(("xml", "has_agent"), [(AGENT, True), ("<domain/>", False)])
def test_when_its_time_is_up_what_it_has_done_is_checked(xml: str, has_agent: bool) -> None:
    ended: list[bool] = []

    def check_end(has_agent: bool) -> None:
        ended.append(has_agent)
        raise TransientError("the repository has not answered")

    with raises("the repository has not answered", TransientError):
        Guest(connected=False).wait(xml, check_end=check_end)
    assert ended == [has_agent]


def test_a_libvirt_that_is_lost_as_its_time_is_up_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times, 3.0))
    with raises("cannot connect to libvirt", HypervisorError):
        Guest([State.RUNNING, RESTART], [LOST]).wait()


def test_another_error_of_libvirt_ends_it() -> None:
    with raises("no permission", HypervisorError):
        Guest([HypervisorError("no permission", code=88)]).wait()


def test_a_stop_ends_it() -> None:
    stop = StopRequest()
    stop.request(Interrupted("interrupted", signal.SIGINT))
    with raises("interrupted", Interrupted):
        Guest(connected=False).wait(stop=stop)
