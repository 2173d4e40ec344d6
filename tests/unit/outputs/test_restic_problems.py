"""outputs/restic.py: problems of a repository, and errors in the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from outputs.restic import Restic
from outputs.restic_repository.program import Program

from ..repository import Repository

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_a_repository_that_can_take_a_backup_has_no_problems(repository: Repository) -> None:
    assert Restic(repository.program()).problems() == []
    assert Restic(repository.program()).configuration_errors() == []
    assert repository.locks() == []


def test_a_wrong_password_and_a_missing_repository_are_problems(
    repository: Repository, tmp_path: Path
) -> None:
    (missing,) = Restic(repository.program(repository=str(tmp_path / "nowhere"))).problems()
    assert "unable to open config file" in missing.message
    repository.password_file.write_text("battery horse")
    (wrong,) = Restic(repository.program()).problems()
    assert "wrong password" in wrong.message


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("restic 0.13.1 compiled with go1.18", "restic has version 0.13.1, but 0.14.0 or newer is required"),
        ("borg 1.2.4", "{} is not restic"),
    ],
)
def test_an_old_restic_and_another_program_are_problems(
    repository: Repository, tmp_path: Path, printed: str, message: str
) -> None:
    fake = tmp_path / "fake-restic"
    fake.write_text(f"#!/bin/sh\necho '{printed}'\n")
    fake.chmod(0o700)
    (problem,) = Restic(repository.program(str(fake))).problems()
    assert problem.message == message.format(fake)


def messages(program: Program) -> list[str]:
    return [error.message for error in Restic(program).configuration_errors()]


def test_a_missing_repository_and_password_are_both_reported() -> None:
    assert messages(Program("restic", "", "", {}, (), 60)) == [
        "RESTIC_REPOSITORY is not set",
        "RESTIC_PASSWORD_FILE is not set",
    ]


def test_restic_s_own_variables_can_name_repository_and_password() -> None:
    environment = {"RESTIC_REPOSITORY_FILE": "/x", "RESTIC_PASSWORD_COMMAND": "/y"}
    assert messages(Program("restic", "", "", environment, (), 60)) == []


def test_a_password_file_must_exist_with_safe_permissions_and_not_be_empty(repository: Repository) -> None:
    path = repository.password_file
    path.chmod(0o640)
    (open_to_others,) = messages(repository.program())
    assert open_to_others.startswith(f"RESTIC_PASSWORD_FILE {path} has unsafe permissions (mode 0640, owner ")
    path.chmod(0o600)
    path.write_text(" \n")
    assert messages(repository.program()) == [f"RESTIC_PASSWORD_FILE {path} is empty"]
    path.unlink()
    assert messages(repository.program()) == [f"RESTIC_PASSWORD_FILE {path}: no such file or directory"]
