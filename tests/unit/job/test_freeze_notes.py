"""backup/job/freeze_notes.py: notes on disk of what is being held still."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from backup.job.freeze_notes import Hold, Journal, Note

from ..raising import raises
from ..samples import OTHER_URI, OTHER_UUID, URI, UUID, domain

WEB = domain("web 1/größe")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path))


def test_a_note_is_there_from_when_it_is_written_until_it_is_erased(journal: Journal, tmp_path: Path) -> None:
    assert (journal.notes(), journal.holds(UUID)) == ([], False)
    journal.write(WEB, Hold.FREEZE)
    journal.write(domain("db", OTHER_UUID, uri=OTHER_URI), Hold.PAUSE)
    assert journal.holds(UUID)
    assert Journal(str(tmp_path)).notes() == [
        Note(UUID, "web 1/größe", Hold.FREEZE, URI),
        Note(OTHER_UUID, "db", Hold.PAUSE, OTHER_URI),
    ]
    journal.erase(UUID)
    journal.erase(UUID)
    assert not journal.holds(UUID)
    assert [note.uuid for note in journal.notes()] == [OTHER_UUID]


def test_a_later_note_of_the_same_domain_replaces_the_first(journal: Journal) -> None:
    journal.write(WEB, Hold.FREEZE)
    journal.write(WEB, Hold.PAUSE)
    assert [note.hold for note in journal.notes()] == [Hold.PAUSE]


def test_a_note_that_was_never_finished_is_none(journal: Journal, tmp_path: Path) -> None:
    journal.write(WEB, Hold.FREEZE)
    journal.erase(UUID)
    (tmp_path / "held" / f"{UUID}.draft").write_text('{"uuid": ')
    assert journal.notes() == []


def test_nobody_else_can_see_the_notes(journal: Journal, tmp_path: Path) -> None:
    journal.write(WEB, Hold.FREEZE)
    assert stat.S_IMODE((tmp_path / "held").stat().st_mode) == 0o700
    assert {path.suffix for path in (tmp_path / "held").iterdir()} == {".json"}


def test_a_note_that_its_worker_erases_while_the_notes_are_read_is_left_out(
    journal: Journal, tmp_path: Path
) -> None:
    journal.write(WEB, Hold.FREEZE)
    (tmp_path / "held" / f"{OTHER_UUID}.json").symlink_to("erased")  # listed, but no longer to be read
    assert [note.uuid for note in journal.notes()] == [UUID]


def test_a_note_that_can_t_be_written_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "held" / f"{UUID}.json"
    message = f"cannot note in {path} that the guest is about to stand still: no such file or directory"
    with raises(message):
        Journal(str(tmp_path / "nowhere")).write(WEB, Hold.FREEZE)
