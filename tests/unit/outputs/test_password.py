"""password.py: where the password comes from, and which ones are random."""

from __future__ import annotations

import base64
import secrets
import string
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backup.errors import BackupError
from outputs.restic_repository.password import password_of, random_bits

from ..repository import Repository


def test_a_password_comes_from_where_restic_takes_it(repository: Repository, tmp_path: Path) -> None:
    program = repository.program()
    assert password_of(program) == "correct horse battery staple"
    assert password_of(replace(program, password_file="", environment={"RESTIC_PASSWORD": "a"})) == "a"
    other = tmp_path / "other"
    other.write_text("b\n")
    assert password_of(replace(program, environment={"RESTIC_PASSWORD_FILE": str(other)})) == "b"
    with pytest.raises(BackupError, match="run by restic alone"):
        password_of(replace(program, environment={"RESTIC_PASSWORD_COMMAND": "pass show backup"}))
    with pytest.raises(BackupError, match="cannot read RESTIC_PASSWORD_FILE"):
        password_of(replace(program, password_file=str(tmp_path / "missing")))


def drawn(characters: str, length: int) -> str:
    return "".join(secrets.choice(characters) for _ in range(length))


@pytest.mark.parametrize(
    ("make", "refused"),
    [
        (lambda: secrets.token_hex(16), 8),
        (lambda: drawn(string.ascii_letters + string.digits, 22), 8),
        (lambda: base64.b64encode(secrets.token_bytes(16)).decode(), 8),
        (lambda: base64.b32encode(secrets.token_bytes(20)).decode(), 8),
        (lambda: base64.b32encode(secrets.token_bytes(20)).decode().lower(), 8),
        (lambda: secrets.token_urlsafe(24), 8),
        (lambda: f"{uuid.uuid4()}{uuid.uuid4()}", 5),
        # openssl rand -hex 32, openssl rand -base64 32, pwgen -s 32 1
        (lambda: secrets.token_hex(32), 5),
        (lambda: secrets.token_hex(32).upper(), 5),
        (lambda: base64.b64encode(secrets.token_bytes(32)).decode(), 5),
        (lambda: drawn(string.ascii_letters + string.digits, 32), 5),
    ],
)
def test_random_passwords_count_as_random(make: Callable[[], str], refused: int) -> None:
    assert sum(random_bits(make()) < 128 for _ in range(200)) <= refused


@pytest.mark.parametrize(
    "password",
    [
        "",
        "secret",
        "a" * 64,
        "=" * 64,
        "0123456789abcdef" * 4,
        "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "correct horse battery staple correct horse battery staple",
        "Correct-Horse-Battery-Staple-Correct-Horse-Battery-Staple-7",
        "Correct/Horse+Battery/Staple+Backup/Repository7",
        "Correct-Horse!Battery.Staple?Our$Third#Node7",
        "CorrectHorseBatteryStaple2024Backup",
        "C0rr3ctH0rs3B4tt3ryS74pl3",
        "CORRECTHORSEBATTERYSTAPLE7",
        "correcthorsebatterystapleinthecellar7",
        "IloveMyMachinesForever4AndTheirBackupsToo",
        "virt-rbd-backup-password-of-our-third-node-in-the-cellar",
        "Sommer2024Winter2025Herbst2026Berlin",
        "1qaz2wsx3edc4rfv5tgbQAZWSXEDC",
        "QwertyuiopAsdfghjklZxcvbnm123",
        "Xk7#" * 10,
        "aB3xK9aB3xK8aB3xK7aB3xK6aB3x",
        "deadbeef" * 8,
        "deadbeefcafebabe0feedfacedecade1",
        "31415926535897932384626433832795028841971",
        "20240101a20250202b20260303c20270404d",
        "é" * 30,
        *(
            encode(text).decode()
            for text in (
                b"correct horse battery staple",
                b"Sommer2024!Sommer2024!\n",
                "Über den Wolken, 7".encode(),
            )
            for encode in (base64.b64encode, base64.urlsafe_b64encode, base64.b32encode)
        ),
        base64.b32encode(b"correct horse battery staple").decode().lower().rstrip("="),
        str(uuid.UUID("6f1c2d3e-8b7a-4c5d-9e0f-a1b2c3d4e5f6")),
        secrets.token_hex(15),
        secrets.token_urlsafe(15),
        drawn(string.ascii_letters + string.digits, 21),
        drawn("".join(map(chr, range(33, 127))), 15) + " " + drawn(string.ascii_letters, 20),
    ],
)
def test_words_patterns_and_short_passwords_do_not(password: str) -> None:
    assert random_bits(password) < 128
