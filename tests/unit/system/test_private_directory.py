"""backup/system/private_directory.py: directories for their owner alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup.system.private_directory import make_private


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_it_and_those_above_it_that_are_missing_are_for_their_owner_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_private(tmp_path / "run/groups/db")
    for name in ("run", "run/groups", "run/groups/db"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_those_that_exist_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o750)
    make_private(tmp_path / "run")
    make_private(tmp_path / "run/db")
    make_private(tmp_path / "run/db")
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o750


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    for path in (tmp_path / "run", tmp_path / "run/db"):
        with pytest.raises(OSError, match=r"exists|Not a directory"):
            make_private(path)
