"""backup/quiesce/freeze_notes.py and freeze.py: two groups never quiesce the same domain at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backup.errors import FreezeFailed, TransientError
from backup.model import Consistency, Level
from backup.quiesce import freeze
from backup.quiesce.freeze import Quiescer
from backup.quiesce.freeze_notes import FreezeNotes, Method

from ..paper_hypervisor import PaperHypervisor
from ..raising import raises
from ..recorder import Recorder
from ..samples import OTHER_UUID, UUID, domain, settings

WEB = domain()


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


def test_one_that_another_group_cannot_thaw_is_saved_without_a_freeze(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "EARLIER_NOTE", 0.01)
    own, theirs, recorder = notes_of(tmp_path, "a"), notes_of(tmp_path, "b"), Recorder()
    hypervisor = PaperHypervisor(WEB, own)
    theirs.write(WEB, Method.FREEZE)
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
