"""backup/quiesce/freeze_notes.py: notes on disk of guests that are quiesced."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from backup.quiesce.freeze_notes import FreezeNotes, Method, Note

from ..raising import raises
from ..samples import OTHER_URI, OTHER_UUID, URI, UUID, domain

WEB = domain("web 1/größe")


@pytest.fixture
def notes(tmp_path: Path) -> FreezeNotes:
    return FreezeNotes(str(tmp_path))


def test_a_note_exists_from_its_writing_until_its_removal(notes: FreezeNotes, tmp_path: Path) -> None:
    assert (notes.all(), notes.exists(UUID)) == ([], False)
    notes.write(WEB, Method.FREEZE)
    notes.write(domain("db", OTHER_UUID, uri=OTHER_URI), Method.PAUSE)
    assert notes.exists(UUID)
    assert FreezeNotes(str(tmp_path)).all() == [
        Note(UUID, "web 1/größe", Method.FREEZE, URI),
        Note(OTHER_UUID, "db", Method.PAUSE, OTHER_URI),
    ]
    notes.remove(UUID)
    notes.remove(UUID)
    assert not notes.exists(UUID)
    assert [note.uuid for note in notes.all()] == [OTHER_UUID]


def test_a_later_note_of_the_same_domain_replaces_the_first(notes: FreezeNotes) -> None:
    notes.write(WEB, Method.FREEZE)
    notes.write(WEB, Method.PAUSE)
    assert [note.method for note in notes.all()] == [Method.PAUSE]


def test_an_unfinished_note_is_ignored(notes: FreezeNotes, tmp_path: Path) -> None:
    notes.write(WEB, Method.FREEZE)
    notes.remove(UUID)
    (tmp_path / "held" / f"{UUID}.draft").write_text('{"uuid": ')
    assert notes.all() == []


def test_other_users_cannot_read_the_notes(notes: FreezeNotes, tmp_path: Path) -> None:
    notes.write(WEB, Method.FREEZE)
    assert stat.S_IMODE((tmp_path / "held").stat().st_mode) == 0o700
    assert {path.suffix for path in (tmp_path / "held").iterdir()} == {".json"}


def test_a_note_that_its_worker_removes_during_the_listing_is_ignored(
    notes: FreezeNotes, tmp_path: Path
) -> None:
    notes.write(WEB, Method.FREEZE)
    (tmp_path / "held" / f"{OTHER_UUID}.json").symlink_to("removed")  # listed, but no longer to be read
    assert [note.uuid for note in notes.all()] == [UUID]


def test_a_note_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "held" / f"{UUID}.json"
    message = f"cannot write {path}, the note that the guest is about to be frozen or paused"
    with raises(f"{message}: no such file or directory"):
        FreezeNotes(str(tmp_path / "nowhere")).write(WEB, Method.FREEZE)
