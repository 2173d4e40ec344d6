"""backup/quiesce/freeze.py: a domain is quiesced for its snapshots, and thawed or resumed in any case."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import libvirt
import pytest

from backup.errors import AlreadyFrozen, BackupError, DomainGone, FreezeFailed, Interrupted, TransientError
from backup.hypervisor.errors import HypervisorError
from backup.hypervisor.guest_mounts import Mount, PartialFreeze, partial_freeze
from backup.model import Consistency, Domain, Level, State
from backup.quiesce import freeze
from backup.quiesce.freeze import Quiesced, Quiescer
from backup.quiesce.freeze_notes import FreezeNotes, Method, Note
from backup.system.stop_request import StopRequest

from ..paper_hypervisor import PaperHypervisor
from ..raising import raises
from ..recorder import Recorder
from ..samples import URI, UUID, domain, settings

FOR_EVER = 1_000_000
RESTARTED = "the domain was shut off, or started anew, while its backup was prepared"
MAYBE_A_FILE = "it is not known whether /safe is in a file of the guest"
# How libvirt hands on that a qemu-ga of any version refuses to freeze, or refuses itself: text and code.
BLOCKED = "unable to execute QEMU agent command 'guest-fsfreeze-freeze': "
REFUSALS: Mapping[str, tuple[str, int]] = {
    "blocked": (f"{BLOCKED}Command guest-fsfreeze-freeze has been disabled: the command is not allowed", 1),
    "blocked, QEMU 7": (f"{BLOCKED}Command guest-fsfreeze-freeze has been disabled", 1),
    "blocked, QEMU 5": (
        f"{BLOCKED}The command guest-fsfreeze-freeze has been disabled for this instance",
        1,
    ),
    "no text": (f"{BLOCKED}The command has been disabled for this instance", 1),
    "not built": (f"{BLOCKED}The command guest-fsfreeze-freeze has not been found", 113),
    "not built, QEMU 8": (f"{BLOCKED}this feature or command is not currently supported", 1),
    "no VSS": (f"{BLOCKED}fsfreeze not possible as VSS failed to initialize", 1),
    "no such driver": ("this function is not supported by the connection driver", libvirt.VIR_ERR_NO_SUPPORT),
    "not permitted": ("access denied", libvirt.VIR_ERR_ACCESS_DENIED),
}
SILENT = HypervisorError("the guest agent does not answer", code=86)


class Failure(BackupError):
    """An error in the block."""


@dataclass
class Guest:
    """A domain on paper with all parts that quiesce it."""

    hypervisor: PaperHypervisor
    notes: FreezeNotes
    recorder: Recorder

    @contextmanager
    def quiesced(self, **constants: Any) -> Iterator[Quiesced]:
        quiescer = Quiescer(self.hypervisor, self.notes, settings(**constants), self.recorder)
        with quiescer.quiesced(self.hypervisor.listed) as quiesced:
            yield quiesced

    def quiesce_and_raise(self, error: BaseException, **constants: Any) -> None:
        with self.quiesced(**constants):
            assert not self.hypervisor.moves
            raise error

    def assert_runs(self) -> None:
        assert self.hypervisor.moves
        assert self.notes.all() == []


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "FIRST_RETRY", 0.001)
    monkeypatch.setattr(freeze, "LAST_RETRY", 0.001)


def guest_of(listed: Domain, directory: Path) -> Guest:
    notes = FreezeNotes(str(directory))
    return Guest(PaperHypervisor(listed, notes), notes, Recorder())


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return guest_of(domain(), tmp_path)


def test_a_guest_with_an_agent_is_frozen_during_the_block_and_recorded_on_disk(guest: Guest) -> None:
    with guest.quiesced() as quiesced:
        assert guest.hypervisor.frozen
        assert guest.notes.all() == [Note(UUID, "web", Method.FREEZE, URI)]
    assert quiesced.consistency is Consistency.FILESYSTEM
    assert 0 < quiesced.seconds < 1
    assert guest.recorder.messages == []
    guest.assert_runs()


def test_the_agent_and_the_snapshots_get_their_share_of_freeze_timeout(guest: Guest) -> None:
    with guest.quiesced(freeze_timeout=30) as quiesced:
        assert 26 < quiesced.seconds_left <= 27
    assert guest.hypervisor.agent_timeouts == {10}


def test_without_an_agent_the_guest_is_paused(tmp_path: Path) -> None:
    guest = guest_of(domain(agent_connected=False), tmp_path)
    with guest.quiesced() as quiesced:
        assert guest.hypervisor.paused
        assert guest.notes.all() == [Note(UUID, "web", Method.PAUSE, URI)]
    assert quiesced.consistency is Consistency.PAUSED
    assert guest.hypervisor.asked == ["pause", "resume"]
    assert guest.recorder.messages == [
        (
            Level.INFO,
            "web",
            "not frozen: no guest agent is connected (hint: install and start qemu-guest-agent in the guest)",
        )
    ]
    guest.assert_runs()


def test_an_agent_that_is_connected_but_silent_is_worth_a_warning(guest: Guest) -> None:
    guest.hypervisor.probe_error = SILENT
    with guest.quiesced() as quiesced:
        assert guest.hypervisor.paused
    assert quiesced.consistency is Consistency.PAUSED
    assert "freeze" not in guest.hypervisor.asked
    (warning,) = guest.recorder.told(Level.WARNING)
    assert warning.startswith("not frozen: the guest agent does not answer")
    guest.assert_runs()


def test_a_request_to_stop_is_heard_while_a_silent_agent_is_asked(guest: Guest) -> None:
    stop = StopRequest()
    stop.request(Interrupted("stopped by SIGTERM", 15))
    quiescer = Quiescer(guest.hypervisor, guest.notes, settings(), guest.recorder, check_stop=stop.check)
    with raises("stopped by SIGTERM", Interrupted), quiescer.quiesced(guest.hypervisor.listed):
        pytest.fail("the block must not begin")
    assert guest.hypervisor.asked == ["probe"]
    guest.assert_runs()


def test_a_guest_that_another_program_has_frozen_is_left_unchanged(guest: Guest) -> None:
    guest.hypervisor.probe_error = AlreadyFrozen("another program has already frozen the guest")
    guest.hypervisor.frozen = True
    with guest.quiesced() as quiesced:
        assert guest.notes.all() == []
    assert quiesced.consistency is Consistency.CRASH
    with raises("another program has already frozen the guest", AlreadyFrozen):
        guest.quiesce_and_raise(Failure("the block must not begin"), freeze="required")
    assert guest.hypervisor.asked == ["probe", "probe"], "neither thawed nor paused"
    assert guest.hypervisor.frozen


@pytest.mark.parametrize("late", [False, True], ids=["never frozen", "frozen all the same"])
def test_after_a_failed_freeze_the_guest_is_thawed_before_it_is_paused(guest: Guest, late: bool) -> None:
    guest.hypervisor.freeze_error = SILENT
    guest.hypervisor.freezes_all_the_same = late
    with guest.quiesced() as quiesced:
        assert (guest.hypervisor.frozen, guest.hypervisor.paused) == (False, True)
    assert quiesced.consistency is Consistency.PAUSED
    assert guest.hypervisor.asked == ["probe", "freeze", "thaw", "pause", "resume"]
    guest.assert_runs()


@pytest.mark.parametrize("code", [86, 68, 55, 0])
def test_a_freeze_that_fails_after_the_agent_answered_names_the_hook_as_the_likely_cause(
    guest: Guest, code: int
) -> None:
    guest.hypervisor.freeze_error = HypervisorError("cannot freeze the guest's file systems", code=code)
    with guest.quiesced():
        pass
    (warning,) = guest.recorder.told(Level.WARNING)
    assert "freeze hook" in warning
    assert ("takes longer than 10 s" in warning) == (code in (86, 68))


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_freeze_has_frozen_nothing_and_the_guest_is_paused_at_once(guest: Guest, case: str) -> None:
    guest.hypervisor.freeze_error = guest.hypervisor.thaw_error = HypervisorError(*refusal(case))
    with guest.quiesced(freeze_timeout=0) as quiesced:
        assert guest.hypervisor.paused
    assert quiesced.consistency is Consistency.PAUSED
    assert guest.recorder.told(Level.ERROR) == []
    (warning,) = guest.recorder.told(Level.WARNING)
    assert warning.startswith("not frozen: cannot freeze the guest's file systems: ")
    assert "(hint: permit guest-fsfreeze-freeze, " in warning
    guest.assert_runs()
    with pytest.raises(FreezeFailed, match="cannot freeze the guest's file systems") as caught:
        guest.quiesce_and_raise(Failure("the block must not begin"), freeze="required", freeze_timeout=0)
    assert not caught.value.transient, "it will be refused again"
    guest.assert_runs()


def refusal(case: str) -> tuple[str, str, int]:
    text, code = REFUSALS[case]
    return f"cannot freeze the guest's file systems: {text}", "", code


def test_a_freeze_that_is_refused_as_another_program_was_quicker_leaves_the_guest_as_found(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freeze_by_another(*_: object) -> int:
        guest.hypervisor.frozen = True
        guest.hypervisor.probe_error = AlreadyFrozen("another program has already frozen the guest")
        raise HypervisorError(*refusal("blocked"))

    monkeypatch.setattr(guest.hypervisor, "freeze", freeze_by_another)
    with guest.quiesced() as quiesced:
        assert guest.hypervisor.frozen
    assert quiesced.consistency is Consistency.CRASH
    assert not {"thaw", "pause"} & set(guest.hypervisor.asked)
    assert guest.notes.all() == []


def test_a_refusal_while_the_guest_is_frozen_is_none_of_the_freeze(guest: Guest) -> None:
    with pytest.raises(HypervisorError):
        guest.quiesce_and_raise(HypervisorError(*refusal("not permitted")))
    guest.assert_runs()


def test_a_refused_pause_has_paused_nothing(guest: Guest) -> None:
    guest.hypervisor.pause_error = HypervisorError(
        "cannot pause the domain", "", libvirt.VIR_ERR_ACCESS_DENIED
    )
    guest.hypervisor.failing_resumes = FOR_EVER
    with raises("cannot pause the domain"):
        guest.quiesce_and_raise(Failure("the block must not begin"), freeze="never", freeze_timeout=0)
    guest.assert_runs()


def test_file_systems_in_files_of_the_guest_are_not_frozen_and_that_is_reported(guest: Guest) -> None:
    guest.hypervisor.partial = PartialFreeze(("/", "/data"), ("/tmp",))
    with guest.quiesced() as quiesced:
        assert guest.hypervisor.mountpoints == ("/", "/data")
    assert quiesced.consistency is Consistency.FILESYSTEM
    text = "not frozen, as they are, or may be, in files of the guest: /tmp"
    assert guest.recorder.told(Level.INFO) == [text]


def test_a_file_system_of_which_nobody_knows_whether_it_can_be_frozen_is_never_left_in_silence(
    guest: Guest,
) -> None:
    guest.hypervisor.partial = PartialFreeze(("/",), (), ("/safe",))
    with guest.quiesced() as quiesced:
        assert guest.hypervisor.paused
    assert quiesced.consistency is Consistency.PAUSED
    (warning,) = guest.recorder.told(Level.WARNING)
    assert warning.startswith("not frozen: it is not known whether /safe is in a file of the guest")
    with raises(MAYBE_A_FILE, FreezeFailed), guest.quiesced(freeze="required"):
        pytest.fail("the block must not begin")
    assert "freeze" not in guest.hypervisor.asked


def test_where_nothing_is_left_to_freeze_not_all_is_frozen(guest: Guest) -> None:
    """An empty list of mountpoints means all of them to libvirt, those in files too."""
    on_disk: Mount = ("/data", "vda1", "ext4", ["vda"])
    in_file: Mount = ("/data", "loop0", "ext4", [])
    guest.hypervisor.partial = partial_freeze([on_disk, in_file])
    with guest.quiesced() as quiesced:
        assert guest.hypervisor.paused
    assert quiesced.consistency is Consistency.PAUSED
    assert "freeze" not in guest.hypervisor.asked
    (warning,) = guest.recorder.told(Level.WARNING)
    assert warning.startswith("not frozen: all that could be frozen is mounted below /data, in files of")


@pytest.mark.parametrize(("wanted", "asked"), [("auto", "pause"), ("required", "freeze")])
def test_after_a_freeze_that_could_not_be_undone_in_time_a_retry_freezes_only_if_it_is_required(
    guest: Guest, wanted: str, asked: str
) -> None:
    chosen = settings(freeze=wanted)
    again = Quiescer(guest.hypervisor, guest.notes, chosen, guest.recorder, freeze_failed=True)
    with again.quiesced(guest.hypervisor.listed):
        pass
    assert asked in guest.hypervisor.asked
    assert ("freeze" in guest.hypervisor.asked) == (wanted == "required")


def test_a_guest_that_may_be_frozen_is_never_paused_and_its_note_stays(guest: Guest) -> None:
    guest.hypervisor.freeze_error = HypervisorError("cannot freeze the guest's file systems")
    guest.hypervisor.freezes_all_the_same = True
    guest.hypervisor.failing_thaws = FOR_EVER
    message = "cannot freeze the guest's file systems"
    with raises(message, FreezeFailed) as caught, guest.quiesced(freeze_timeout=0):
        raise AssertionError("the block must not begin")
    assert caught.value.transient, "a retry saves it without a freeze"
    assert "pause" not in guest.hypervisor.asked
    assert guest.notes.all() == [Note(UUID, "web", Method.FREEZE, URI)]
    (error,) = guest.recorder.told(Level.ERROR)
    assert error.startswith("the guest may still be frozen: the guest agent does not answer")


def test_after_an_unanswered_freeze_the_thaw_is_repeated_until_the_freeze_cannot_happen_any_more(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = HypervisorError("no answer within 10 s")
    error.__cause__ = TimeoutError()
    guest.hypervisor.freeze_error = error
    monkeypatch.setattr(freeze, "AGENT_JOB", -10 + 0.2)  # with what the agent gets, a fifth of a second
    monkeypatch.setattr(freeze, "GRACE", 0)
    thaw = guest.hypervisor.thaw

    def thaw_before_the_freeze(of: Domain, timeout: int) -> int:
        found = thaw(of, timeout)
        guest.hypervisor.frozen = guest.hypervisor.asked.count("thaw") == 1  # libvirt had it wait
        return found

    monkeypatch.setattr(guest.hypervisor, "thaw", thaw_before_the_freeze)
    with guest.quiesced(freeze_timeout=30) as quiesced:
        assert guest.hypervisor.paused
    assert quiesced.consistency is Consistency.PAUSED
    assert guest.hypervisor.asked.count("thaw") == 2
    guest.assert_runs()


def test_a_freeze_of_no_file_system_is_a_failed_freeze(guest: Guest) -> None:
    guest.hypervisor.file_systems = 0
    with guest.quiesced() as quiesced:
        assert guest.hypervisor.paused
    assert quiesced.consistency is Consistency.PAUSED
    guest.assert_runs()


def test_a_thaw_is_retried_until_it_succeeds(guest: Guest) -> None:
    with guest.quiesced() as quiesced:
        guest.hypervisor.failing_thaws = 2
    assert guest.hypervisor.asked == ["probe", "freeze", "thaw", "thaw", "thaw"]
    assert quiesced.consistency is Consistency.FILESYSTEM
    guest.assert_runs()


@pytest.mark.parametrize(
    ("constants", "message", "command"),
    [
        ({}, "the guest may still be frozen: the guest agent does not answer", "virsh domfsthaw"),
        ({"freeze": "never"}, "the guest may still be paused: cannot resume the domain", "virsh resume"),
    ],
)
def test_a_guest_that_cannot_be_thawed_is_an_error_with_the_command_and_its_note_stays(
    guest: Guest, constants: dict[str, str], message: str, command: str
) -> None:
    with raises(message) as caught, guest.quiesced(freeze_timeout=0, **constants):
        guest.hypervisor.failing_thaws = guest.hypervisor.failing_resumes = FOR_EVER
    assert caught.value.hint == f"{command} {UUID}"
    assert [note.uuid for note in guest.notes.all()] == [UUID]


def test_a_thaw_is_retried_for_freeze_timeout_seconds_and_no_longer(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(FOR_EVER))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    message = "the guest may still be frozen: the guest agent does not answer"
    with raises(message), guest.quiesced(freeze_timeout=30):
        guest.hypervisor.failing_thaws = FOR_EVER
    assert guest.hypervisor.asked.count("thaw") == 31


NOTHING_FROZEN = "nothing frozen"
REQUIRED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "no agent": ("no guest agent is connected", {"listed": domain(agent_connected=False)}),
    "silent agent": ("the guest agent does not answer", {"probe_error": SILENT}),
    "failed freeze": ("the guest agent does not answer", {"freeze_error": SILENT}),
    NOTHING_FROZEN: ("the guest agent found no file system to freeze", {"file_systems": 0}),
}


@pytest.mark.parametrize("case", REQUIRED)
def test_a_required_freeze_that_fails_is_not_replaced_by_a_pause(guest: Guest, case: str) -> None:
    message, changes = REQUIRED[case]
    for name, value in changes.items():
        setattr(guest.hypervisor, name, value)
    with raises(message, FreezeFailed) as caught, guest.quiesced(freeze="required"):
        raise AssertionError("the block must not begin")
    assert caught.value.transient is (case != NOTHING_FROZEN), (
        "retried at the end of the run, if it is of use"
    )
    assert "pause" not in guest.hypervisor.asked
    guest.assert_runs()


def test_a_required_freeze_without_a_channel_for_the_agent_is_not_retried(tmp_path: Path) -> None:
    guest = guest_of(domain(agent_connected=False, agent_channel=False), tmp_path)
    with raises("no guest agent is connected", FreezeFailed) as caught, guest.quiesced(freeze="required"):
        raise AssertionError("the block must not begin")
    assert not caught.value.transient


def test_where_freezing_is_switched_off_the_agent_is_not_even_asked(guest: Guest) -> None:
    with guest.quiesced(freeze="never") as quiesced:
        assert guest.hypervisor.paused
    assert quiesced.consistency is Consistency.PAUSED
    assert guest.hypervisor.asked == ["pause", "resume"]
    guest.assert_runs()


def test_where_pausing_is_switched_off_too_the_guest_runs_on(guest: Guest) -> None:
    with guest.quiesced(freeze="never", without_freeze="crash") as quiesced:
        guest.assert_runs()
    assert (quiesced.consistency, quiesced.seconds) == (Consistency.CRASH, 0)
    assert guest.hypervisor.asked == []


@pytest.mark.parametrize(
    ("state", "consistency"),
    [
        (State.SHUT_OFF, Consistency.OFFLINE),
        (State.SAVED, Consistency.PAUSED),
        (State.PAUSED, Consistency.PAUSED),
        (State.SUSPENDED, Consistency.PAUSED),
        (State.CRASHED, Consistency.CRASH),
    ],
)
@pytest.mark.parametrize("wanted", ["auto", "required"])
def test_a_domain_that_does_not_run_is_left_unchanged(
    tmp_path: Path, state: State, consistency: Consistency, wanted: str
) -> None:
    guest = guest_of(domain(state=state), tmp_path)
    with guest.quiesced(freeze=wanted) as quiesced:
        assert guest.notes.all() == []
        assert quiesced.seconds_left > 0
    assert (quiesced.consistency, quiesced.seconds) == (consistency, 0)
    assert guest.hypervisor.asked == []


@pytest.mark.parametrize("now", [State.RUNNING, State.BUSY, State.SHUT_OFF, State.PAUSED])
@pytest.mark.parametrize("state", [State.SHUT_OFF, State.SAVED, State.PAUSED, State.SUSPENDED, State.CRASHED])
def test_a_required_freeze_fails_where_the_domain_started_while_its_snapshots_were_made(
    tmp_path: Path, state: State, now: State
) -> None:
    if now is state:
        return
    guest = guest_of(domain(state=state, agent_connected=False, agent_channel=False), tmp_path)
    message = f"the domain did not stay {state.value} while its snapshots were made"
    with raises(message, FreezeFailed) as caught, guest.quiesced(freeze="required"):
        guest.hypervisor.listed = domain(state=now)
    assert caught.value.transient, "a retry freezes it"
    guest.assert_runs()
    guest.hypervisor.listed = domain(state=state)
    with guest.quiesced(freeze="auto") as quiesced:
        guest.hypervisor.listed = domain(state=now)
    assert quiesced.consistency is Consistency.CRASH
    assert guest.recorder.told(Level.WARNING) == [message]


def test_the_error_of_the_snapshots_survives_a_domain_that_started_meanwhile(tmp_path: Path) -> None:
    guest = guest_of(domain(state=State.SHUT_OFF), tmp_path)
    with raises("no snapshots", Failure), guest.quiesced(freeze="required"):
        guest.hypervisor.listed = domain()
        raise Failure("no snapshots")


def test_a_guest_that_another_program_has_thawed_is_only_crash_consistent(guest: Guest) -> None:
    with guest.quiesced() as quiesced:
        guest.hypervisor.frozen = False
    assert quiesced.consistency is Consistency.CRASH
    assert guest.recorder.told(Level.WARNING) == ["the guest thawed before its snapshots were complete"]
    guest.assert_runs()


def test_a_guest_that_another_program_has_thawed_fails_a_required_freeze(guest: Guest) -> None:
    message = "the guest thawed before its snapshots were complete"
    with raises(message, FreezeFailed) as caught, guest.quiesced(freeze="required"):
        guest.hypervisor.frozen = False
    assert caught.value.transient
    guest.assert_runs()


def test_a_guest_that_somebody_has_resumed_is_only_crash_consistent(guest: Guest) -> None:
    with guest.quiesced(freeze="never") as quiesced:
        guest.hypervisor.paused = False
    assert quiesced.consistency is Consistency.CRASH
    message = "the guest did not stay paused until its snapshots were complete"
    assert guest.recorder.told(Level.WARNING) == [message]
    guest.assert_runs()


def test_a_guest_that_may_have_been_resumed_as_it_has_a_job_is_only_crash_consistent(guest: Guest) -> None:
    with guest.quiesced(freeze="never") as quiesced:
        guest.hypervisor.paused = False
        guest.hypervisor.listed = replace(guest.hypervisor.listed, state=State.BUSY)
    assert quiesced.consistency is Consistency.CRASH
    guest.assert_runs()


def test_a_resume_whose_answer_is_lost_is_none_by_somebody_else(guest: Guest) -> None:
    resume = guest.hypervisor.resume

    def without_answer(domain: Domain) -> None:
        guest.hypervisor.resume = resume  # type: ignore[method-assign]
        resume(domain)
        raise HypervisorError("no answer within 60 s")

    guest.hypervisor.resume = without_answer  # type: ignore[method-assign]
    with guest.quiesced(freeze="never") as quiesced:
        pass
    assert quiesced.consistency is Consistency.PAUSED
    guest.assert_runs()


TOO_LATE = "the snapshots took longer than FREEZE_TIMEOUT: the guest may have been thawed meanwhile"


@pytest.mark.parametrize("wanted", ["auto", "never"])
@pytest.mark.parametrize(("after", "counts"), [(30.9, True), (31.1, False)])
def test_a_guest_that_others_may_have_thawed_and_frozen_again_counts_as_neither_frozen_nor_paused(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, wanted: str, after: float, counts: bool
) -> None:
    """Its worker was stopped, and could not be killed, as on a node where it cannot be identified."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with guest.quiesced(freeze_timeout=30, freeze=wanted) as quiesced:
        clock[0] += after
    assert (quiesced.consistency is not Consistency.CRASH) == counts
    assert guest.recorder.told(Level.WARNING) == ([] if counts else [TOO_LATE])
    guest.assert_runs()


def test_a_required_freeze_fails_where_others_may_have_thawed_the_guest(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with raises(TOO_LATE, FreezeFailed) as caught, guest.quiesced(freeze_timeout=30, freeze="required"):
        clock[0] += 32
    assert caught.value.transient
    guest.assert_runs()


@pytest.mark.parametrize("constants", [{}, {"freeze": "never"}], ids=["frozen", "paused"])
@pytest.mark.parametrize("error", [Failure("no snapshots"), KeyboardInterrupt(), ValueError("a bug")])
def test_whatever_is_raised_in_the_block_the_guest_is_thawed_or_resumed(
    guest: Guest, constants: dict[str, str], error: BaseException
) -> None:
    with pytest.raises(type(error)):
        guest.quiesce_and_raise(error, **constants)
    guest.assert_runs()


def test_the_block_s_error_survives_a_thaw_that_fails_too(guest: Guest) -> None:
    with raises("no snapshots", Failure), guest.quiesced(freeze_timeout=0):
        guest.hypervisor.failing_thaws = FOR_EVER
        raise Failure("no snapshots")
    (error,) = guest.recorder.told(Level.ERROR)
    assert error.startswith("the guest may still be frozen")
    assert [note.method for note in guest.notes.all()] == [Method.FREEZE]


def test_a_pause_that_fails_is_undone_all_the_same(guest: Guest) -> None:
    guest.hypervisor.pause_error = HypervisorError("cannot pause the domain")
    with raises("cannot pause the domain"), guest.quiesced(freeze="never"):
        raise AssertionError("the block must not begin")
    assert guest.hypervisor.asked == ["pause", "resume"]
    guest.assert_runs()


@pytest.mark.parametrize("wanted", ["auto", "required", "never"])
def test_a_guest_whose_note_cannot_be_written_is_not_touched(tmp_path: Path, wanted: str) -> None:
    guest = guest_of(domain(), tmp_path / "nowhere")
    with pytest.raises(BackupError, match="no such file or directory"):
        guest.quiesce_and_raise(AssertionError("the block must not begin"), freeze=wanted)
    assert not {"freeze", "pause"} & set(guest.hypervisor.asked)


def test_a_domain_that_is_gone_meanwhile_needs_no_thaw(guest: Guest) -> None:
    with guest.quiesced():
        guest.hypervisor.gone = True
    assert "thaw" not in guest.hypervisor.asked
    assert guest.notes.all() == []
    (error,) = guest.recorder.told(Level.ERROR)
    assert error.startswith("the domain is gone; a backup may have left it frozen or paused (hint: ")


@pytest.mark.parametrize("wanted", ["auto", "required", "never"])
@pytest.mark.parametrize("state", [State.BUSY, State.ELSEWHERE])
def test_a_guest_that_begins_to_migrate_is_neither_frozen_nor_paused(
    guest: Guest, state: State, wanted: str
) -> None:
    listed = guest.hypervisor.listed
    guest.hypervisor.listed = replace(listed, state=state)
    quiescer = Quiescer(guest.hypervisor, guest.notes, settings(freeze=wanted), guest.recorder)
    with pytest.raises(BackupError, match="migrat"), quiescer.quiesced(listed):
        pytest.fail("the block must not begin")
    assert not {"freeze", "pause"} & set(guest.hypervisor.asked)


NO_ANSWER = HypervisorError("cannot read the domain's state: no answer", code=libvirt.VIR_ERR_RPC)
AFTER_A_FAILED_FREEZE: Mapping[str, BackupError | State] = {
    "libvirt does not answer": NO_ANSWER,
    "it migrates": State.BUSY,
    "it has migrated": State.ELSEWHERE,
    "it is gone": DomainGone("the domain is no longer defined"),
}


@pytest.mark.parametrize("wanted", ["auto", "required"])
@pytest.mark.parametrize("after", AFTER_A_FAILED_FREEZE)
def test_why_a_freeze_failed_is_reported_whatever_the_domain_s_state_is_afterwards(
    guest: Guest, after: str, wanted: str
) -> None:
    guest.hypervisor.freeze_error = SILENT
    _then(guest.hypervisor, AFTER_A_FAILED_FREEZE[after])
    with pytest.raises(BackupError) as caught, guest.quiesced(freeze=wanted):
        pytest.fail("the block must not begin")
    warnings = guest.recorder.told(Level.WARNING)
    assert SILENT.message in " ".join([str(caught.value), *warnings])
    assert isinstance(caught.value, FreezeFailed) == (after == "libvirt does not answer")
    assert caught.value.transient or isinstance(caught.value, DomainGone), "a retry may succeed"
    assert "pause" not in guest.hypervisor.asked
    guest.assert_runs()


@pytest.mark.parametrize("after", ["libvirt does not answer", "it migrates"])
def test_a_retry_knows_of_a_guest_that_may_still_be_frozen_whatever_its_state_is(
    guest: Guest, after: str
) -> None:
    guest.hypervisor.freeze_error, guest.hypervisor.freezes_all_the_same = SILENT, True
    guest.hypervisor.failing_thaws = FOR_EVER
    _then(guest.hypervisor, AFTER_A_FAILED_FREEZE[after])
    with raises(SILENT.message, FreezeFailed) as caught, guest.quiesced(freeze_timeout=0):
        pytest.fail("the block must not begin")
    assert caught.value.transient
    assert guest.notes.exists(UUID)


def test_a_state_that_is_unknown_for_a_moment_is_retried_without_a_channel_too(tmp_path: Path) -> None:
    guest = guest_of(domain(agent_connected=False, agent_channel=False), tmp_path)
    _then(guest.hypervisor, NO_ANSWER)
    with raises("no guest agent is connected", FreezeFailed) as caught, guest.quiesced():
        pytest.fail("the block must not begin")
    assert caught.value.transient


def _then(hypervisor: PaperHypervisor, answer: BackupError | State) -> None:
    """Have the hypervisor give this as the state once the freeze has failed, and was undone."""
    state_before = hypervisor.state

    def state(uuid: str) -> State:
        undone = "thaw" in hypervisor.asked or not hypervisor.listed.agent_connected
        if not undone:
            return state_before(uuid)
        if isinstance(answer, BackupError):
            raise answer
        return answer

    hypervisor.state = state  # type: ignore[method-assign]


def test_a_guest_that_migrates_during_its_freeze_is_kept_and_thawed_here(guest: Guest) -> None:
    """The freeze would end on the destination."""
    hypervisor = guest.hypervisor
    hypervisor.freeze_error, hypervisor.freezes_all_the_same = SILENT, True
    hypervisor.failing_thaws = 1
    freeze_as_ever = hypervisor.freeze

    def freeze_while_it_migrates(domain: Domain, timeout: int, mountpoints: Sequence[str] = ()) -> int:
        hypervisor.listed = replace(domain, state=State.BUSY)
        return freeze_as_ever(domain, timeout, mountpoints)

    hypervisor.freeze = freeze_while_it_migrates  # type: ignore[method-assign]
    with pytest.raises(BackupError), guest.quiesced(freeze="required"):
        pytest.fail("the block must not begin")
    assert hypervisor.cancelled == 1
    guest.assert_runs()


@pytest.mark.parametrize("state", [State.SHUT_OFF, State.CRASHED])
def test_a_guest_that_is_no_longer_there_needs_no_thaw(guest: Guest, state: State) -> None:
    with guest.quiesced():
        guest.hypervisor.listed = domain(state=state)
    assert "thaw" not in guest.hypervisor.asked
    assert guest.notes.all() == []


def test_a_pause_by_an_admin_just_before_ours_is_not_undone(tmp_path: Path) -> None:
    guest = guest_of(domain(agent_connected=False), tmp_path)
    guest.hypervisor.paused = True  # since the domain was listed
    with guest.quiesced() as quiesced:
        assert guest.notes.all() == []
    assert quiesced.consistency is Consistency.PAUSED
    assert guest.hypervisor.asked == []
    assert guest.hypervisor.paused


@pytest.mark.parametrize("agent", [True, False], ids=["freeze", "pause"])
def test_a_guest_that_was_started_anew_since_it_was_listed_is_not_quiesced(
    tmp_path: Path, agent: bool
) -> None:
    """Its note would name the start before, and be taken for settled."""
    listed = domain(agent_connected=agent, instance=5)
    guest = guest_of(replace(listed, instance=6), tmp_path)
    quiescer = Quiescer(guest.hypervisor, guest.notes, settings(), guest.recorder)
    with raises(RESTARTED, TransientError), quiescer.quiesced(listed):
        pass
    guest.assert_runs()
    assert not {"freeze", "pause"} & {*guest.hypervisor.asked}


def test_a_guest_that_an_earlier_backup_may_have_left_frozen_is_saved_without_a_freeze(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "EARLIER_NOTE", 0.01)
    guest.notes.write(domain(), Method.FREEZE)
    with guest.quiesced() as quiesced:
        pass
    assert quiesced.consistency is Consistency.CRASH
    assert guest.hypervisor.asked == []
    (error,) = guest.recorder.told(Level.ERROR)
    assert error.startswith("the guest may still be frozen or paused by an earlier backup")
    assert str(guest.notes.path(UUID)) in error
    message = "the guest may still be frozen or paused by an earlier backup"
    with raises(message, FreezeFailed), guest.quiesced(freeze="required"):
        raise AssertionError("the block must not begin")
    assert [note.uuid for note in guest.notes.all()] == [UUID]


def test_an_earlier_note_that_is_removed_in_time_does_not_hinder_the_freeze(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.notes.write(domain(), Method.FREEZE)
    monkeypatch.setattr(time, "sleep", lambda _: guest.notes.remove(UUID))
    with guest.quiesced() as quiesced:
        assert guest.hypervisor.frozen
    assert quiesced.consistency is Consistency.FILESYSTEM


def test_the_note_of_a_domain_saved_while_frozen_stays_as_it_will_start_frozen(
    guest: Guest,
) -> None:
    message = "the guest was saved while it was frozen or paused, and will start like that"
    with raises(message) as caught, guest.quiesced():
        guest.hypervisor.listed = domain(state=State.SAVED)
    assert caught.value.hint == "start it, then main.py cleanup"
    assert [note.uuid for note in guest.notes.all()] == [UUID]
