"""backup/quiesce/thaw.py, thaw_rounds.py: guests are thawed and resumed by their notes, with retries."""

from __future__ import annotations

import _thread
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import AlreadyFrozen, BackupError
from backup.hypervisor import connections
from backup.hypervisor.errors import HypervisorError
from backup.model import Domain, Level, State
from backup.quiesce import thaw, thaw_rounds
from backup.quiesce.freeze_notes import FreezeNotes, Method, Note
from backup.quiesce.thaw_rounds import Thaws
from backup.system.process_group import ProcessId, is_running, kill, process_id

from ..paper_hypervisor import PaperHypervisor
from ..recorder import Recorder
from ..samples import OTHER_URI, OTHER_UUID, URI, UUID, domain, settings
from ..waiting import wait_until, within

FOR_EVER = 1_000_000


class Node:
    """A node with a domain that another process, maybe dead, has frozen or paused or is about to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.notes = FreezeNotes(str(directory))
        self.web = PaperHypervisor(domain(instance=7), self.notes)
        self.reachable = {URI: self.web}
        self.recorder = Recorder()
        chosen = settings(runtime_dir=str(directory), freeze_timeout=30, libvirt_uri=[URI, OTHER_URI])
        self.thaws = Thaws(chosen, self.recorder)

    def connect(self, uri: str, *_: object) -> PaperHypervisor:
        if uri not in self.reachable:
            raise HypervisorError(f"cannot connect to libvirt at {uri}: no route to host")
        return self.reachable[uri]

    def note(self, method: Method, owner: ProcessId, seconds: float = 30) -> Note:
        """Write the note of an owner that is about to quiesce the domain."""
        note = self.notes.write(self.web.listed, method, seconds)
        self.notes._put(replace(note, owner=owner))
        return note

    def round(self) -> int:
        return self.thaws.round(lambda note: True)

    @property
    def has_note(self) -> bool:
        return self.notes.exists(UUID)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    node = Node(tmp_path)
    for module in (thaw_rounds, connections):
        monkeypatch.setattr(module, "Hypervisor", node.connect)
    monkeypatch.setattr(thaw_rounds, "FIRST_PAUSE", 0.001)
    for module in (thaw, thaw_rounds):
        monkeypatch.setattr(module, "CHECK_AGAIN", 0.001)
    return node


@pytest.fixture
def dead() -> ProcessId:
    """Return a process that has ended."""
    with subprocess.Popen(["sleep", "60"]) as process:
        ended = process_id(process.pid)
        process.kill()
    return ended


@pytest.fixture
def alive() -> Iterator[ProcessId]:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        yield process_id(process.pid)
        process.kill()


def test_a_freeze_that_happens_after_the_thaw_is_undone_too(node: Node, dead: ProcessId) -> None:
    node.note(Method.FREEZE, dead)
    assert node.round() == 1
    assert node.web.asked == ["thaw"], "it found nothing frozen"
    assert node.has_note
    node.web.frozen = True  # what the dead process had asked libvirt for
    wait_for_its_turn()
    assert node.round() == 0
    assert node.web.moves
    assert not node.has_note


def test_a_pause_that_happens_after_the_resume_is_undone_too(node: Node, dead: ProcessId) -> None:
    node.note(Method.PAUSE, dead)
    assert node.round() == 1
    node.web.paused = True
    wait_for_its_turn()
    assert node.round() == 0
    assert node.web.moves
    assert not node.has_note


@pytest.mark.parametrize("method", Method)
def test_once_the_freeze_cannot_happen_any_more_two_checks_that_find_nothing_frozen_are_enough(
    node: Node, dead: ProcessId, method: Method
) -> None:
    node.note(method, dead, seconds=0)
    assert node.round() == 1
    wait_for_its_turn()
    assert node.round() == 0
    assert not node.has_note


def test_a_freeze_that_waited_in_a_stopped_libvirt_is_undone_however_long_that_was(
    node: Node, dead: ProcessId
) -> None:
    """libvirt may answer the thaw first, and then carry out what it has read meanwhile."""
    node.note(Method.FREEZE, dead, seconds=0)
    del node.reachable[URI]
    assert node.round() == 1
    node.reachable[URI] = node.web
    wait_until(lambda: node.round() and node.web.asked, 10, "libvirt answers for the first time")
    node.web.frozen = True
    wait_for_its_turn()
    assert node.round() == 0
    assert (node.web.moves, node.has_note) == (True, False)


def test_the_second_check_comes_a_while_after_the_first_answer(
    node: Node, dead: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.note(Method.FREEZE, dead, seconds=0)
    clock = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(thaw, "CHECK_AGAIN", 1.0)
    looks = []
    while node.round():
        looks.append(clock[0])
        clock[0] += 0.1
    assert 1.0 <= clock[0] - looks[0] < 1.3


@pytest.mark.parametrize("method", Method)
def test_a_restarted_guest_needs_no_thaw_even_without_an_agent(
    node: Node, dead: ProcessId, method: Method
) -> None:
    node.note(method, dead)
    node.web.listed = domain(instance=8)
    node.web.failing_thaws = FOR_EVER
    assert node.round() == 0
    assert "resume" not in node.web.asked, "the note's owner has not paused it"
    assert not node.has_note


@pytest.mark.parametrize("method", Method)
def test_a_guest_that_was_saved_while_quiesced_is_thawed_or_resumed_once_it_was_started(
    node: Node, dead: ProcessId, method: Method
) -> None:
    """It goes on as it was saved, but with another ID; and its agent may need a moment."""
    node.note(method, dead, seconds=0)
    node.web.listed = domain(state=State.SAVED, instance=-1)
    assert node.round() == 1
    node.web.listed = domain(instance=8)
    node.web.frozen, node.web.paused = method is Method.FREEZE, method is Method.PAUSE
    node.web.failing_thaws = node.web.failing_resumes = 1
    wait_for_its_turn()
    assert node.round() == 1
    assert node.has_note
    wait_until(lambda: not node.round(), 10, "its agent answers")
    assert (node.web.moves, node.has_note) == (True, False)


@pytest.mark.parametrize("method", Method)
def test_a_guest_that_is_busy_is_not_taken_for_one_that_was_started_anew(
    node: Node, dead: ProcessId, method: Method
) -> None:
    """libvirt may be giving it back the memory with which it was saved."""
    node.note(method, dead, seconds=0)
    node.web.listed = domain(state=State.BUSY, instance=8)
    node.web.failing_thaws = node.web.failing_resumes = FOR_EVER
    assert node.round() == 1
    assert node.has_note


def test_a_newer_note_keeps_the_start_that_it_names(node: Node, dead: ProcessId, alive: ProcessId) -> None:
    old = node.note(Method.PAUSE, dead)
    node.note(Method.PAUSE, alive)
    node.notes.forget_instance(replace(old, owner=dead))
    assert [note.instance for note in node.notes.all()] == [7]
    (newer,) = node.notes.all()
    node.notes.forget_instance(newer)
    assert [note.instance for note in node.notes.all()] == [-1]


def test_the_thaw_of_a_guest_without_its_agent_is_retried_after_growing_pauses(
    node: Node, dead: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.note(Method.FREEZE, dead)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(thaw_rounds, "FIRST_PAUSE", 0.2)
    node.web.failing_thaws = FOR_EVER
    tried = []
    for _ in range(2000):
        before = len(node.web.asked)
        assert node.round() == 1
        if len(node.web.asked) > before:
            tried.append(clock[0])
        clock[0] += 0.1
    pauses = [round(later - earlier, 1) for earlier, later in zip(tried, tried[1:])]
    assert pauses[0] < pauses[3] < max(pauses) <= thaw_rounds.LAST_PAUSE + 0.2
    assert sorted(pauses) == pauses
    (error,) = node.recorder.told(Level.ERROR)
    assert error.startswith("the guest may still be frozen: the guest agent does not answer (hint: virsh")
    node.web.failing_thaws = 0
    clock[0] += thaw_rounds.LAST_PAUSE
    node.web.frozen = True
    assert node.round() == 0
    assert not node.has_note


REFUSED = HypervisorError("'guest-fsfreeze-thaw': Command guest-fsfreeze-thaw has been disabled", code=1)


def test_a_thaw_that_an_agent_of_a_running_guest_refuses_is_none_to_retry(
    node: Node, dead: ProcessId
) -> None:
    """An agent that refuses to thaw refuses to freeze too: the killed owner has frozen nothing."""
    node.note(Method.FREEZE, dead, seconds=0.3)
    node.web.thaw_error = REFUSED
    assert node.round() == 1, "the freeze may still come, and not be refused"
    wait_until(lambda: not node.round(), 10, "it cannot come any more")
    assert not node.has_note
    assert node.recorder.told(Level.ERROR) == []


@pytest.mark.parametrize(
    "error",
    [AlreadyFrozen("another program has already frozen the guest"), HypervisorError("silent", code=86)],
)
def test_a_thaw_that_is_refused_although_the_guest_may_be_frozen_is_retried(
    node: Node, dead: ProcessId, error: BackupError
) -> None:
    node.note(Method.FREEZE, dead, seconds=0)
    node.web.thaw_error, node.web.probe_error = REFUSED, error
    node.web.frozen = True
    assert node.round() == 1
    assert node.has_note


def test_a_guest_that_migrated_to_a_known_libvirt_is_thawed_there(node: Node, dead: ProcessId) -> None:
    node.note(Method.FREEZE, dead)
    there = PaperHypervisor(domain(uri=OTHER_URI, instance=1), node.notes)
    there.frozen = True
    node.reachable[OTHER_URI] = there
    node.web.listed = domain(state=State.ELSEWHERE)
    assert node.round() == 0
    assert (there.moves, node.has_note) == (True, False)


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("method", Method)
def test_a_guest_that_was_started_on_another_node_after_its_own_died_has_no_note_any_more(
    node: Node, dead: ProcessId, method: Method, connected: bool
) -> None:
    """Whether its agent has started there, or not."""
    node.note(method, dead)
    del node.reachable[URI]
    there = PaperHypervisor(domain(uri=OTHER_URI, instance=1, agent_connected=connected), node.notes)
    there.failing_thaws = 0 if connected else FOR_EVER
    node.reachable[OTHER_URI] = there
    assert node.round() == 0
    assert not node.has_note
    (warning,) = node.recorder.told(Level.WARNING)
    assert warning.startswith(f"the guest runs at {OTHER_URI} now, ")


@pytest.mark.parametrize("method", Method)
def test_a_guest_that_had_migrated_before_its_node_died_is_thawed_where_it_is(
    node: Node, dead: ProcessId, method: Method
) -> None:
    node.note(method, dead)
    del node.reachable[URI]
    there = PaperHypervisor(domain(uri=OTHER_URI, instance=1), node.notes)
    there.frozen, there.paused = method is Method.FREEZE, method is Method.PAUSE
    there.failing_thaws = there.failing_resumes = 1
    node.reachable[OTHER_URI] = there
    assert node.round() == 1, "it may be frozen there"
    wait_until(lambda: not node.round(), 10, "it was thawed")
    assert there.moves
    assert not node.has_note


@pytest.mark.parametrize("state", [State.SHUT_OFF, State.SAVED, State.ELSEWHERE, State.BUSY, None])
def test_a_guest_whose_node_cannot_be_reached_may_still_be_frozen_there_unless_it_runs_elsewhere(
    node: Node, dead: ProcessId, state: State | None
) -> None:
    """Another node may define it too, or not know it, or be its migration's destination."""
    node.note(Method.FREEZE, dead, seconds=0)
    del node.reachable[URI]
    other = domain("web" if state else "db", UUID if state else OTHER_UUID, uri=OTHER_URI)
    there = PaperHypervisor(replace(other, state=state or State.RUNNING), node.notes)
    node.reachable[OTHER_URI] = there
    assert node.round() == 1
    assert node.has_note


def test_another_node_that_cannot_be_reached_does_not_hide_where_the_guest_is_now(
    tmp_path: Path, node: Node, dead: ProcessId
) -> None:
    """One defines it, one cannot be reached, and one runs it, frozen."""
    uris = [URI, "qemu+ssh://node3/system", OTHER_URI, "qemu+ssh://node4/system"]
    chosen = settings(runtime_dir=str(tmp_path), freeze_timeout=30, libvirt_uri=uris)
    node.thaws = Thaws(chosen, node.recorder)
    node.note(Method.FREEZE, dead)
    node.web.listed = domain(state=State.ELSEWHERE)
    node.reachable[OTHER_URI] = PaperHypervisor(domain(state=State.SHUT_OFF, uri=OTHER_URI), node.notes)
    there = node.reachable[uris[3]] = PaperHypervisor(domain(uri=uris[3], instance=1), node.notes)
    there.frozen = True
    assert node.round() == 0
    assert (there.moves, node.has_note) == (True, False)


def test_a_guest_that_migrated_out_of_reach_is_reported_once_and_its_note_removed(
    node: Node, dead: ProcessId
) -> None:
    node.note(Method.FREEZE, dead)
    node.reachable[OTHER_URI] = PaperHypervisor(domain("db", "another"), node.notes)
    node.web.listed = domain(state=State.ELSEWHERE)
    assert node.round() == 0
    assert not node.has_note
    (error,) = node.recorder.told(Level.ERROR)
    assert error.startswith(
        "the guest migrated to another node while it was frozen or paused (hint: on that node: virsh"
    )


def test_a_guest_that_migrates_while_paused_is_kept_and_resumed_here(node: Node, dead: ProcessId) -> None:
    node.note(Method.PAUSE, dead)
    node.web.paused = True
    node.web.state = lambda uuid: node.web.listed.state  # type: ignore[method-assign]
    node.web.listed = domain(state=State.BUSY, instance=7)
    node.round()
    assert (node.web.cancelled, node.web.paused) == (1, False)


def test_a_guest_that_cannot_be_thawed_may_migrate_later(node: Node, dead: ProcessId) -> None:
    """The freeze's note is old: this is a migration that an admin ordered since."""
    node.note(Method.FREEZE, dead, seconds=0)
    node.web.failing_thaws = FOR_EVER
    node.web.listed = domain(state=State.BUSY, instance=7)
    assert node.round() == 1
    assert node.web.cancelled == 0


def test_an_owner_that_does_not_thaw_in_time_is_killed_before_its_guest_is_thawed(
    node: Node, alive: ProcessId
) -> None:
    node.note(Method.FREEZE, alive)
    node.web.frozen = True
    node.thaws.enforce()
    assert (node.web.asked, is_running(alive), node.thaws.killed) == ([], True, set()), "it has its time"
    node.note(Method.FREEZE, alive, seconds=0)
    node.thaws.enforce()
    assert (is_running(alive), node.thaws.killed) == (False, {UUID})
    assert (node.web.moves, node.has_note) == (True, False)


def test_an_owner_that_thaws_is_helped_and_not_killed(node: Node, alive: ProcessId) -> None:
    note = node.note(Method.FREEZE, alive, seconds=0.01)
    node.notes.mark_releasing(replace(note, owner=alive), 0.02)
    node.web.frozen = True
    wait_for_its_turn()
    node.thaws.enforce()
    assert (is_running(alive), node.thaws.killed, node.web.moves) == (True, set(), True)


REFUSED_CALLS = [OSError(errno.ENOSYS, "Function not implemented"), OSError(errno.EPERM, "Not permitted")]


@pytest.mark.parametrize("error", [*REFUSED_CALLS, OSError(errno.EMFILE, "Too many"), AttributeError("none")])
@pytest.mark.parametrize("call", [(os, "pidfd_open"), (signal, "pidfd_send_signal")], ids=["open", "send"])
def test_an_owner_is_killed_where_a_container_refuses_to_open_processes(
    node: Node,
    alive: ProcessId,
    monkeypatch: pytest.MonkeyPatch,
    call: tuple[object, str],
    error: Exception,
) -> None:
    monkeypatch.setattr(*call, refusing(error))
    os.kill(alive.pid, signal.SIGSTOP)
    node.note(Method.FREEZE, alive, seconds=0)
    node.web.frozen = True
    node.thaws.enforce()
    assert (is_running(alive), node.web.moves, node.has_note) == (False, True, False)
    other = ProcessId(os.getpid(), process_id(os.getpid()).began - 1)
    kill(other)  # this process has its PID now


def refusing(error: Exception) -> Callable[..., object]:
    def refuse(*_: object, **__: object) -> object:
        raise error

    return refuse


def test_an_owner_that_cannot_be_killed_is_reported_and_its_guest_thawed(
    node: Node, alive: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.note(Method.FREEZE, alive, seconds=0)
    node.web.frozen = True
    with monkeypatch.context() as patch:
        for name in ("pidfd_open", "kill"):
            patch.setattr(os, name, refusing(OSError(errno.EPERM, "Operation not permitted")))
        node.thaws.enforce()
    assert (node.web.moves, node.has_note) == (True, False)
    assert f"cannot kill process {alive.pid}: operation not permitted" in node.recorder.told(Level.ERROR)[0]


def test_a_bug_with_one_note_keeps_no_other_guest_from_being_thawed(
    node: Node, dead: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.note(Method.PAUSE, dead)
    db = PaperHypervisor(domain("db", OTHER_UUID, uri=OTHER_URI), node.notes)
    node.reachable[OTHER_URI] = db
    node.notes._put(replace(node.notes.write(db.listed, Method.PAUSE), owner=dead))
    node.web.paused = db.paused = True
    overdue = Note.overdue

    def fails_for_web(note: Note, seconds: float = 0) -> bool:
        return bool(1 / 0) if note.name == "web" else overdue(note, seconds)

    monkeypatch.setattr(Note, "overdue", fails_for_web)
    for _ in range(3):
        node.thaws.enforce()
    assert (node.web.moves, db.moves) == (True, True)
    (error,) = [text for text in node.recorder.told(Level.ERROR) if "ZeroDivisionError" in text]
    assert "cannot thaw or resume" in error


@pytest.mark.parametrize(
    "wrong", ['"until": "soon"', '"owner": [1]', '"owner": "x"', '"owner": 1', '"instance": null']
)
def test_a_note_of_a_wrong_type_is_one_that_cannot_be_read(node: Node, wrong: str) -> None:
    (node.directory / "held").mkdir()
    text = f'{{"uuid": "{UUID}", "name": "web", "hold": "freeze", "uri": "{URI}", {wrong}}}'
    (node.directory / f"held/{UUID}.json").write_text(text)
    node.thaws.enforce()
    assert len(node.notes.unreadable()) == 1


def test_a_guest_whose_owner_is_dead_is_resumed_at_once(node: Node, dead: ProcessId) -> None:
    node.note(Method.PAUSE, dead)
    node.web.paused = True
    node.thaws.enforce()
    assert (node.web.moves, node.has_note) == (True, False)


def test_a_bug_while_one_guest_is_thawed_costs_no_other_one(
    node: Node, dead: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.note(Method.FREEZE, dead)
    with monkeypatch.context() as patch:
        patch.setattr(node.web, "thaw", lambda *_: 1 / 0)
        assert node.round() == 1
    assert "ZeroDivisionError" in node.recorder.told(Level.ERROR)[0]
    assert node.has_note


def test_a_guest_is_thawed_although_no_thread_could_be_started_for_it_at_first(
    node: Node, dead: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of processes, for example."""

    def none_left(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    node.note(Method.PAUSE, dead)
    node.web.paused = True
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", none_left)
        assert node.round() == 1
    assert (node.web.paused, node.has_note) == (True, True)
    within(lambda: not node.round(), 2, "it is thawed soon")
    assert (node.web.moves, node.has_note) == (True, False)
    assert node.recorder.told(Level.ERROR) == [], "no bug"


def test_a_guest_is_thawed_although_a_call_of_its_thaw_timed_out(
    node: Node, dead: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of the node's own: it has ended, and does not go on."""
    resume, refused = node.web.resume, iter([TimeoutError(errno.ETIMEDOUT, "Connection timed out")])

    def times_out_once(of: Domain) -> None:
        for error in refused:
            raise error
        resume(of)

    monkeypatch.setattr(node.web, "resume", times_out_once)
    node.note(Method.PAUSE, dead)
    node.web.paused = True
    assert node.round() == 1
    within(lambda: not node.round(), 2, "it is thawed soon")
    assert (node.web.moves, node.has_note) == (True, False)


def test_a_call_that_hangs_delays_no_other_guest(
    node: Node, dead: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thaw_rounds, "HANG_LIMIT", 0.05)
    go_on = threading.Event()
    node.note(Method.PAUSE, dead)
    db = PaperHypervisor(domain("db", OTHER_UUID, uri=OTHER_URI), node.notes)
    node.reachable[OTHER_URI] = db
    node.notes.write(db.listed, Method.PAUSE)
    node.web.paused = db.paused = True
    resume = node.web.resume
    monkeypatch.setattr(node.web, "resume", lambda of: go_on.wait(30) and resume(of))
    try:
        assert node.round() == 1
        assert (node.web.paused, db.moves) == (True, True)
        assert node.round() == 1, "it still hangs"
    finally:
        go_on.set()
    wait_until(lambda: not node.round(), 10, "it has ended")
    assert (node.web.moves, node.has_note) == (True, False)


def test_a_newer_note_of_the_same_domain_is_not_removed_with_the_old(node: Node, alive: ProcessId) -> None:
    old = node.note(Method.FREEZE, alive, seconds=1)
    node.note(Method.FREEZE, alive, seconds=30)
    node.notes.remove_unless_newer(old)
    assert node.has_note


def test_a_note_of_an_older_version_is_read(node: Node) -> None:
    (node.directory / "held").mkdir()
    old = f'{{"uuid": "{UUID}", "name": "web", "hold": "freeze", "uri": "{URI}"}}'
    (node.directory / f"held/{UUID}.json").write_text(old)
    node.web.frozen = True
    node.thaws.enforce()
    assert (node.web.moves, node.has_note) == (True, False)


def test_no_process_is_taken_for_another_with_the_same_pid(alive: ProcessId) -> None:
    other = ProcessId(alive.pid, alive.began - 1)
    assert not is_running(other)
    kill(other)
    assert is_running(alive)
    with pytest.raises(FileNotFoundError):
        process_id(2**22 + 1)


def wait_for_its_turn() -> None:
    """Let a twentieth of a second pass, which is the longest pause of these tests."""
    until = time.monotonic() + 0.06
    while time.monotonic() < until:
        time.sleep(0.01)
