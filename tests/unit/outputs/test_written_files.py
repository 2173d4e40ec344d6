"""outputs/restic_repository/written_files.py: what restic and rclone cannot write is found by check."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from outputs.restic_repository.program import Program
from outputs.restic_repository.written_files import file_problems

TOKENS = '[drive]\ntype = drive\ntoken = {"access_token":"x"}\n'
STRICT = "[Service]\nProtectSystem=strict\nProtectHome=read-only\n"


def found(
    repository: str, environment: Mapping[str, str], units: Path, options: Sequence[str] = ("--no-cache",)
) -> list[str]:
    program = Program("restic", repository, "", environment, options, 60)
    return [problem.message for problem in file_problems(program, (str(units),))]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory that nobody can write, root neither."""
    directory = tmp_path / "read-only"
    directory.mkdir()
    writable = os.access

    def access(path: Path, mode: int) -> bool:
        return not str(path).startswith(str(directory)) and writable(path, mode)

    monkeypatch.setattr(os, "access", access)
    return directory


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with rclone's configuration."""
    configuration = tmp_path / "home/.config/rclone/rclone.conf"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(TOKENS)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({"RESTIC_CACHE_DIR": "{}"}, ()),
        ({"XDG_CACHE_HOME": "{}", "RESTIC_CACHE_DIR": ""}, ()),
        ({"RESTIC_CACHE_DIR": "/tmp"}, ("--cache-dir={}",)),
    ],
)
def test_a_cache_that_cannot_be_written_is_found(
    read_only: Path, environment: Mapping[str, str], options: Sequence[str]
) -> None:
    given = {name: value.format(read_only) for name, value in environment.items()}
    (problem,) = found("/srv", given, read_only, [option.format(read_only) for option in options])
    assert problem.startswith(f"restic cannot write its cache {read_only}")
    assert found("/srv", given, read_only, ["--no-cache"]) == []


def test_a_cache_that_is_still_to_be_made_is_no_problem(tmp_path: Path) -> None:
    assert found("/srv", {"RESTIC_CACHE_DIR": str(tmp_path / "a/b")}, tmp_path, ()) == []


def test_tokens_of_rclone_that_cannot_be_written_back_are_found(read_only: Path) -> None:
    path = read_only / "rclone.conf"
    path.write_text(TOKENS)
    given = {"RCLONE_CONFIG": str(path)}
    (problem,) = found("rclone:drive:backup", given, read_only)
    assert problem.startswith(f"rclone cannot write its configuration {path}")
    assert found("s3:host/bucket", given, read_only) == []
    path.write_text("[s3]\ntype = s3\naccess_key_id = x\n")
    assert found("rclone:s3:backup", given, read_only) == []


def test_the_service_s_read_only_homes_are_found_from_outside_of_it(home: Path, tmp_path: Path) -> None:
    (tmp_path / "virt-rbd-backup.service").write_text(STRICT)
    given = {"HOME": str(home)}
    (problem,) = found("rclone:drive:backup", given, tmp_path)
    assert problem.startswith("in virt-rbd-backup.service, rclone cannot write its configuration")
    drop_in = tmp_path / "virt-rbd-backup.service.d/rclone.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nReadWritePaths=-{home}/.config/rclone\n")
    assert found("rclone:drive:backup", given, tmp_path) == []


def test_what_lies_where_this_user_may_not_look_is_no_bug(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def denied(path: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(f"{home}/"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", denied)
    assert found("rclone:drive:backup", {"HOME": str(home)}, tmp_path, ()) == []


def test_without_the_service_a_home_can_be_written(home: Path, tmp_path: Path) -> None:
    assert found("rclone:drive:backup", {"HOME": str(home)}, tmp_path) == []
