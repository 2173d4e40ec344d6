"""The keys of a real repository: a fast one is added, tried first, and removed."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.system.stop_request import StopRequest
from outputs.restic import Restic
from outputs.restic_repository import fast_key
from outputs.restic_repository.fast_key import FAST_WORK, add_fast_key, remove_fast_keys
from outputs.restic_repository.key_hint import LEARNT_FOR, VARIABLE
from outputs.restic_repository.keys import learn, list_keys
from outputs.restic_repository.password import password_of, random_bits
from outputs.restic_repository.program import Program

from ..repository import Repository

PASSWORD = base64.b64encode(hashlib.sha256(b"random").digest()).decode()

pytestmark = pytest.mark.usefixtures("nothing_left")


def never_stop() -> None:
    pass


@pytest.fixture
def program(repository: Repository, tmp_path: Path) -> Program:
    return replace(repository.program(), state_dir=str(tmp_path))


@pytest.fixture
def slow(repository: Repository, program: Program, tmp_path: Path) -> Program:
    """Give restic a random password with a key as it makes it."""
    new = tmp_path / "new"
    new.write_text(f"{PASSWORD}\n")
    repository.restic("key", "add", f"--new-password-file={new}")
    repository.password_file.write_text(f"{PASSWORD}\n")
    return program


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take any password for a random one, and any key for a fast one: restic need not be slowed down much."""
    monkeypatch.setattr(fast_key, "FEWEST_BITS", 0)
    monkeypatch.setattr(fast_key, "SHARES", (0.1,))
    monkeypatch.setattr(fast_key, "FAST_WORK", 1 << 30)


def opening(program: Program) -> str:
    """Name the key that restic opens the repository with."""
    (key,) = (key.id for key in list_keys(program, never_stop) if key.opens)
    return key


def test_a_fast_key_is_added_used_and_removed(slow: Program, repository: Repository) -> None:
    program, first = slow, opening(slow)
    texts = Restic(program).advice()
    assert any("to check the password: see `key --help`" in text for text in texts)
    added = add_fast_key(program, never_stop)
    assert added.work <= FAST_WORK
    assert opening(program) == added.id != first
    assert add_fast_key(program, never_stop).id == added.id  # there is no second one
    assert len(list_keys(program, never_stop)) == 3
    assert Restic(program).advice() == []
    (removed,) = remove_fast_keys(program, never_stop)
    assert removed.id == added.id
    assert opening(program) == first
    assert remove_fast_keys(program, never_stop) == ()
    assert repository.locks() == []


def test_a_password_that_can_be_guessed_gets_no_fast_key(repository: Repository) -> None:
    with pytest.raises(BackupError, match="the password has about 52 random bits, and a fast key needs 128"):
        add_fast_key(repository.program(), never_stop)
    assert len(list_keys(repository.program(), never_stop)) == 1


@pytest.mark.usefixtures("hurried")
def test_a_stop_ends_restic_while_it_is_slowed_down(program: Program, repository: Repository) -> None:
    stop = StopRequest()
    fed = fast_key._fed

    def stops(*arguments: object) -> bool:
        found = fed(*arguments)  # type: ignore[arg-type]
        if found:
            stop.request(BackupError("enough"))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_key, "_fed", stops)
        with pytest.raises(BackupError, match="enough"):
            add_fast_key(program, stop.check)
    assert len(list_keys(program, never_stop)) == 1
    assert repository.locks() == []


@pytest.mark.usefixtures("hurried")
def test_a_key_that_is_not_fast_is_removed_again(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_key, "FAST_WORK", 1)
    with pytest.raises(BackupError, match="this node is too busy"):
        add_fast_key(program, never_stop)
    assert len(list_keys(program, never_stop)) == 1


@pytest.mark.usefixtures("hurried")
def test_the_only_key_of_a_password_is_not_removed(program: Program) -> None:
    slow = opening(program)
    fast = add_fast_key(program, never_stop)
    program.call("key", "remove", slow, limit=60)
    with pytest.raises(BackupError, match="with its fast key only"):
        remove_fast_keys(program, never_stop)
    assert fast.id == opening(program)


@pytest.mark.usefixtures("hurried")
def test_a_run_learns_of_a_key_that_another_node_added(program: Program, tmp_path: Path) -> None:
    fast = add_fast_key(program, never_stop).id
    other = replace(program, state_dir=str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    Restic(other).ready()
    assert opening(other) == fast


@pytest.mark.usefixtures("hurried")
def test_what_was_learnt_holds_for_a_day(program: Program) -> None:
    fast = add_fast_key(program, never_stop).id
    learn(program, never_stop)
    assert program.key_hint.variables == {VARIABLE: fast}
    program.key_hint.remember("00000000")  # that key was removed since
    learn(program, never_stop)
    assert program.key_hint.variables == {VARIABLE: "00000000"}
    assert Restic(program).restore_points() == []
    old = program.key_hint.path.stat().st_mtime - LEARNT_FOR
    os.utime(program.key_hint.path, (old, old))
    learn(program, never_stop)
    assert program.key_hint.variables == {VARIABLE: fast[:8]}


def test_an_admin_s_own_hint_is_kept(program: Program) -> None:
    program = replace(program, environment={VARIABLE: "12345678"})
    learn(program, never_stop)
    assert not program.key_hint.path.exists()


def test_one_key_needs_no_hint(repository: Repository, tmp_path: Path) -> None:
    program = replace(repository.program(), state_dir=str(tmp_path))
    Restic(program).ready()
    assert program.key_hint.variables == {}


def test_a_password_comes_from_where_restic_takes_it(program: Program, tmp_path: Path) -> None:
    assert password_of(program) == "correct horse battery staple"
    assert password_of(replace(program, password_file="", environment={"RESTIC_PASSWORD": "a"})) == "a"
    other = tmp_path / "other"
    other.write_text("b\n")
    assert password_of(replace(program, environment={"RESTIC_PASSWORD_FILE": str(other)})) == "b"
    with pytest.raises(BackupError, match="run by restic alone"):
        password_of(replace(program, environment={"RESTIC_PASSWORD_COMMAND": "pass show backup"}))
    with pytest.raises(BackupError, match="cannot read RESTIC_PASSWORD_FILE"):
        password_of(replace(program, password_file=str(tmp_path / "missing")))


@pytest.mark.parametrize(
    "make",
    [
        lambda: secrets.token_hex(16),
        lambda: secrets.token_hex(32).upper(),
        lambda: base64.b64encode(secrets.token_bytes(32)).decode(),
        lambda: base64.b32encode(secrets.token_bytes(20)).decode(),
        lambda: secrets.token_urlsafe(24),
    ],
)
def test_random_passwords_count_as_random(make: Callable[[], str]) -> None:
    enough = sum(random_bits(make()) >= 128 for _ in range(200))
    assert enough >= 180, "more than one in ten is refused"


@pytest.mark.parametrize(
    "password",
    [
        "",
        "secret",
        "a" * 64,
        "0123456789abcdef" * 4,
        "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "correct horse battery staple correct horse battery staple",
        "Correct-Horse-Battery-Staple-Correct-Horse-Battery-Staple-7",
        "IloveMyMachinesForever4AndTheirBackupsToo",
        "virt-rbd-backup-password-of-our-third-node-in-the-cellar",
        "deadbeef" * 8,
        secrets.token_hex(15),
        secrets.token_urlsafe(15),
    ],
)
def test_words_patterns_and_short_passwords_do_not(password: str) -> None:
    assert random_bits(password) < 128
