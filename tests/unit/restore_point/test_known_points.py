"""backup/restore_point/known_points.py: what is written, how much of it, and what happens if that fails."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from backup.restore_point import known_points
from backup.restore_point.known_points import FILE, known_runs, remember

from ..samples import RUN, held_point

COMPLETE = held_point(manifest_id="0123abcd")


def test_complete_restore_points_are_remembered_newest_first_for_root_alone(tmp_path: Path) -> None:
    again = replace(COMPLETE, id=COMPLETE.id._replace(attempt=2))
    other = replace(COMPLETE, id=COMPLETE.id._replace(run="later"))
    remember([COMPLETE, again, other, replace(held_point(), domain="db")], str(tmp_path))
    assert known_runs(str(tmp_path)) == {"web": ["later", RUN]}
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "no draft"


def test_of_many_the_newest_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_points, "MAX_RUNS", 2)
    monkeypatch.setattr(known_points, "MAX_DOMAINS", 2)
    points = [
        replace(COMPLETE, domain=name, id=COMPLETE.id._replace(run=run))
        for run in "abc"
        for name in ("x" * 256, "one", "two", "three")
    ]
    remember(points, str(tmp_path))
    assert known_runs(str(tmp_path)) == {"three": ["c", "b"], "two": ["c", "b"]}


def test_without_a_directory_nothing_is_written_and_nothing_fails(tmp_path: Path) -> None:
    remember([COMPLETE], str(tmp_path / "state"))
    assert not (tmp_path / "state").exists()
    remember([COMPLETE], "/proc/no-state")


def test_a_full_disk_leaves_what_was_remembered_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember([COMPLETE], str(tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    remember([], str(tmp_path))
    assert [*known_runs(str(tmp_path))] == ["web"]
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "no draft"
