"""backup/quiesce/freeze_notes.py and freeze.py: two groups never quiesce the same domain at once."""

from __future__ import annotations

import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import AlreadyFrozen, FreezeFailed, TransientError
from backup.hypervisor.guest_mounts import PartialFreeze
from backup.model import Consistency, Domain, Level, State
from backup.quiesce import other_group
from backup.quiesce.freeze import Quiescer
from backup.quiesce.freeze_notes import FreezeNotes, Method
from backup.system.process_group import ProcessId, process_id
from backup.system.time_limit import CheckStop, never_stop

from ..paper_hypervisor import PaperHypervisor
from ..raising import raises
from ..recorder import Recorder
from ..samples import OTHER_UUID, UUID, domain, settings

WEB = domain()
STILL_ACTIVE = "a backup of another group has the guest frozen or paused, and is still active"


class ProbedLate(PaperHypervisor):
    """A guest to which something happens when its agent is asked."""

    meanwhile: Callable[[], object]

    def probe_agent(
        self, domain: Domain, timeout: int, check_stop: CheckStop = never_stop
    ) -> PartialFreeze | None:
        self.meanwhile()
        return super().probe_agent(domain, timeout, check_stop)


def notes_of(node_dir: Path, group: str) -> FreezeNotes:
    """Give the notes of a group; "" for none."""
    path = node_dir / "groups" / group if group else node_dir
    path.mkdir(parents=True, exist_ok=True)
    return FreezeNotes(str(path), str(node_dir))


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("", "a"), ("a", "")])
def test_a_note_of_another_group_keeps_a_domain_from_being_quiesced(
    tmp_path: Path, one: str, other: str
) -> None:
    own, theirs = notes_of(tmp_path, one), notes_of(tmp_path, other)
    theirs.write(WEB, Method.FREEZE)
    message = "a backup of another group has just begun to freeze or pause the guest"
    with raises(f"{message} ({theirs.path(UUID)})", TransientError):
        own.write(WEB, Method.PAUSE)
    assert (own.all(), [note.method for note in theirs.all()]) == ([], [Method.FREEZE])
    own.write(domain("db", OTHER_UUID), Method.PAUSE)
    theirs.remove(UUID)
    own.write(WEB, Method.PAUSE)
    own.remove(UUID)
    assert theirs.all() == []


def test_where_the_other_groups_cannot_be_listed_nothing_is_quiesced(tmp_path: Path) -> None:
    own = notes_of(tmp_path, "")
    (tmp_path / "groups").touch()
    with raises("cannot find out whether another group has frozen or paused the guest: not a directory"):
        own.write(WEB, Method.FREEZE)
    assert own.all() == []


def test_of_many_groups_that_begin_at_once_none_has_a_note_beside_another_s(tmp_path: Path) -> None:
    groups = [notes_of(tmp_path, name) for name in "abcd"]
    inside, together, passed = [0], [0], [0]
    counting = threading.Lock()

    def quiesce(notes: FreezeNotes) -> None:
        for _ in range(150):
            try:
                notes.write(WEB, Method.FREEZE)
            except TransientError:
                continue
            with counting:
                inside[0] += 1
                together[0] = max(together[0], inside[0])
                passed[0] += 1
            time.sleep(0)
            with counting:
                inside[0] -= 1
            notes.remove(UUID)

    with ThreadPoolExecutor(len(groups)) as threads:
        list(threads.map(quiesce, groups))
    assert passed[0] > 0
    assert together[0] == 1


def test_a_guest_that_another_group_has_frozen_is_waited_for(tmp_path: Path) -> None:
    own, theirs = notes_of(tmp_path, "a"), notes_of(tmp_path, "b")
    hypervisor = PaperHypervisor(WEB, own)
    theirs.write(WEB, Method.FREEZE)
    timer = threading.Timer(0.5, theirs.remove, [UUID])
    timer.start()
    with Quiescer(hypervisor, own, settings(), Recorder()).quiesced(WEB) as quiesced:
        assert theirs.all() == []
        assert hypervisor.frozen
    timer.join()
    assert quiesced.consistency is Consistency.FILESYSTEM
    assert hypervisor.moves


def killed() -> ProcessId:
    """Give a process that has ended, as the owner of a killed run's note."""
    process = subprocess.Popen(["/bin/sleep", "60"])
    found = process_id(process.pid)
    process.kill()
    process.wait()
    return found


def abandoned(notes: FreezeNotes, method: Method = Method.FREEZE) -> None:
    """Write a note whose owner was killed."""
    note = replace(notes.write(WEB, method), owner=killed())
    notes._put(note)


def test_one_that_another_group_cannot_thaw_is_saved_without_a_freeze(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_group, "MARGIN", 0.01)
    own, theirs, recorder = notes_of(tmp_path, "a"), notes_of(tmp_path, "b"), Recorder()
    hypervisor = PaperHypervisor(WEB, own)
    abandoned(theirs)
    with Quiescer(hypervisor, own, settings(freeze_timeout=0), recorder).quiesced(WEB) as quiesced:
        pass
    assert quiesced.consistency is Consistency.CRASH
    assert hypervisor.asked == []
    (error,) = recorder.told(Level.ERROR)
    assert str(theirs.path(UUID)) in error
    required = Quiescer(hypervisor, own, settings(freeze_timeout=0, freeze="required"), recorder)
    with pytest.raises(FreezeFailed), required.quiesced(WEB):
        raise AssertionError("the block must not begin")
    assert [note.uuid for note in theirs.all()] == [UUID]


def test_a_live_run_of_another_group_is_waited_for_by_its_own_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_group, "MARGIN", 0.01)
    own, theirs = notes_of(tmp_path, "a"), notes_of(tmp_path, "b")
    hypervisor = PaperHypervisor(WEB, own)
    theirs.write(WEB, Method.FREEZE, seconds=60)
    timer = threading.Timer(1.0, theirs.remove, [UUID])
    timer.start()
    with Quiescer(hypervisor, own, settings(freeze_timeout=0), Recorder()).quiesced(WEB):
        assert (theirs.all(), hypervisor.frozen) == ([], True)
    timer.join()


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_one_that_is_late_is_retried_and_nobody_is_told_to_undo_its_freeze(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(other_group, "MARGIN", 0.01)
    own, theirs, recorder = notes_of(tmp_path, "a"), notes_of(tmp_path, "b"), Recorder()
    hypervisor = PaperHypervisor(WEB, own)
    theirs.write(WEB, Method.FREEZE)
    quiescer = Quiescer(hypervisor, own, settings(freeze_timeout=0, freeze=mode), recorder)
    with raises(STILL_ACTIVE, TransientError), quiescer.quiesced(WEB):
        raise AssertionError("the block must not begin")
    assert (hypervisor.asked, recorder.messages) == ([], [])
    assert theirs.exists(UUID)


@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("dead", [False, True])
def test_a_freeze_of_another_group_that_the_probe_finds_is_no_other_program_s(
    tmp_path: Path, mode: str, dead: bool
) -> None:
    """It begins after the wait for it, and before the own note."""
    own, theirs = notes_of(tmp_path, "a"), notes_of(tmp_path, "b")
    hypervisor = ProbedLate(WEB, own)
    hypervisor.meanwhile = partial(abandoned, theirs) if dead else partial(theirs.write, WEB, Method.FREEZE)
    hypervisor.probe_error = AlreadyFrozen("the guest is frozen already")
    quiescer = Quiescer(hypervisor, own, settings(freeze=mode), Recorder())
    expected = FreezeFailed if dead else TransientError
    if dead and mode == "auto":
        with quiescer.quiesced(WEB) as quiesced:
            assert quiesced.consistency is Consistency.CRASH
        return
    with pytest.raises(expected), quiescer.quiesced(WEB):
        raise AssertionError("the block must not begin")


@pytest.mark.parametrize("listed", [State.RUNNING, State.PAUSED])
def test_a_pause_of_another_group_is_not_taken_for_an_admin_s(tmp_path: Path, listed: State) -> None:
    """It begins after the wait for it."""
    own, theirs = notes_of(tmp_path, "a"), notes_of(tmp_path, "b")
    hypervisor = ProbedLate(replace(WEB, state=listed), own)

    def pause() -> None:
        theirs.write(WEB, Method.PAUSE)
        hypervisor.paused = True

    if listed is State.PAUSED:
        pause()
    hypervisor.meanwhile = pause
    hypervisor.probe_error = FreezeFailed("no guest agent is connected")
    quiescer = Quiescer(hypervisor, own, settings(without_freeze="pause"), Recorder())
    with raises(STILL_ACTIVE, TransientError), quiescer.quiesced(hypervisor.listed):
        raise AssertionError("the block must not begin")
