"""The keys of a real repository: a fast one is added, tried first, and removed."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.system.stop_request import StopRequest
from backup.terminal.tables import fast_key_text
from outputs.restic import Restic
from outputs.restic_repository import calibration, fast_key, keys
from outputs.restic_repository import program as program_module
from outputs.restic_repository.calibration import add_key
from outputs.restic_repository.fast_key import add_fast_key, remove_fast_keys
from outputs.restic_repository.key_hint import LEARNT_FOR, VARIABLE
from outputs.restic_repository.keys import FAST_USER, FAST_WORK, learn, list_keys, tried_first
from outputs.restic_repository.messages import ResticError
from outputs.restic_repository.program import Program
from tests.quick_repository import KEY
from tests.quick_repository import PASSWORD as CHEAP

from ..repository import Repository
from ..waiting import wait_until

PASSWORD = base64.b64encode(hashlib.sha256(b"random").digest()).decode()

HOST = socket.gethostname()

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
    monkeypatch.setattr(keys, "FAST_WORK", 1 << 30)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_key, "PAUSES", ())
    monkeypatch.setattr(fast_key, "UNDO_PAUSES", ())


def added_by_hand(repository: Repository, password: str = CHEAP) -> str:
    """Add a slow key in this program's name, as an attempt that failed does, and return its id."""
    new = repository.path.parent / "by-hand"
    new.write_text(password)
    before = key_files(repository)
    names = (f"--user={FAST_USER}", f"--host={HOST}")
    repository.restic("key", "add", *names, f"--new-password-file={new}")
    (key,) = key_files(repository) - before
    return key


def planted(repository: Repository, host: str = HOST) -> str:
    """Add a cheap key in this program's name: the repository's own one, at another time."""
    text = (
        KEY.replace("2024", str(2024 + len(key_files(repository))))
        .replace('"tests"', f'"{FAST_USER}"', 1)
        .replace('"tests"', f'"{host}"', 1)
    )
    key = hashlib.sha256(text.encode()).hexdigest()
    (repository.path / "keys" / key).write_text(text)
    return key


def key_files(repository: Repository) -> set[str]:
    return {path.name for path in (repository.path / "keys").iterdir()}


def adding(monkeypatch: pytest.MonkeyPatch, add: Callable[[], object]) -> None:
    """Let this replace `restic key add` with a share of a processor."""
    monkeypatch.setattr(fast_key, "FEWEST_BITS", 0)
    monkeypatch.setattr(fast_key, "add_key", lambda *_: add())


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
    expected = "does not look random, and a fast key needs 128 random bits"
    with pytest.raises(BackupError, match=expected) as caught:
        add_fast_key(repository.program(), never_stop)
    assert "openssl rand -base64 32" in caught.value.hint
    assert len(list_keys(repository.program(), never_stop)) == 1


@pytest.mark.usefixtures("hurried")
def test_a_stop_ends_restic_while_it_is_slowed_down(program: Program, repository: Repository) -> None:
    stop = StopRequest()
    fed = calibration._fed

    def stops(*arguments: object) -> bool:
        found = fed(*arguments)  # type: ignore[arg-type]
        if found:
            stop.request(BackupError("enough"))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "_fed", stops)
        with pytest.raises(BackupError, match="enough"):
            add_fast_key(program, stop.check)
    assert len(list_keys(program, never_stop)) == 1
    assert repository.locks() == []


@pytest.mark.usefixtures("hurried")
def test_a_key_that_is_not_fast_is_removed_again(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "FAST_WORK", 1)
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


@pytest.mark.parametrize("printed", ["null", "{}", "3", "no JSON"])
def test_a_repository_that_goes_away_while_its_keys_are_listed_is_an_error(
    repository: Repository, tmp_path: Path, printed: str
) -> None:
    restic = tmp_path / "gone-restic"
    restic.write_text(f"#!/bin/sh\necho '{printed}'\n")  # null: as restic does
    restic.chmod(0o700)
    program = repository.program(str(restic), repository="sftp:host:/backups")
    with pytest.raises(ResticError):
        learn(program, never_stop)


@pytest.mark.parametrize("damaged", [bytes(64), b"0123abcd\0", b"no id", b"a" * 200_000, b"\xff" * 8])
def test_a_damaged_hint_is_none_and_is_learnt_anew(program: Program, damaged: bytes) -> None:
    program.key_hint.path.write_bytes(damaged)
    assert program.key_hint.variables == {}
    assert program.key_hint.age is None
    assert Restic(program).restore_points() == []


def test_an_admin_s_own_hint_is_kept(program: Program) -> None:
    program = replace(program, environment={VARIABLE: "12345678"})
    learn(program, never_stop)
    assert not program.key_hint.path.exists()


def test_one_key_needs_no_hint(repository: Repository, tmp_path: Path) -> None:
    program = replace(repository.program(), state_dir=str(tmp_path))
    Restic(program).ready()
    assert program.key_hint.variables == {}


@pytest.mark.usefixtures("hurried")
def test_fast_keys_of_another_password_stay(program: Program, repository: Repository) -> None:
    foreign = added_by_hand(repository, "another")
    assert remove_fast_keys(program, never_stop) == ()
    ours = add_fast_key(program, never_stop).id
    assert [key.id for key in remove_fast_keys(program, never_stop)] == [ours]
    assert foreign in key_files(repository)


def test_a_slow_key_in_our_name_is_not_fast_and_is_removed(
    program: Program, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = opening(program)
    slow = added_by_hand(repository)
    assert [(key.ours, key.fast) for key in list_keys(program, never_stop) if key.id == slow] == [
        (True, False)
    ]
    learn(program, never_stop)
    assert program.key_hint.variables in ({VARIABLE: before[:8]}, {VARIABLE: slow[:8]})
    foreign = added_by_hand(repository, "another")
    adding(monkeypatch, lambda: planted(repository))
    fast = add_fast_key(program, never_stop)
    assert fast.fast
    assert key_files(repository) == {before, foreign, fast.id}
    added_by_hand(repository)
    assert len(remove_fast_keys(program, never_stop)) == 2
    assert key_files(repository) == {before, foreign}


def test_a_stop_after_a_slow_key_was_added_removes_it(
    program: Program, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    before = key_files(repository)

    def add() -> None:
        planted(repository)
        stop.request(BackupError("enough"))

    adding(monkeypatch, add)
    monkeypatch.setattr(keys, "FAST_WORK", 1)
    with pytest.raises(BackupError) as caught:
        add_fast_key(program, stop.check)
    assert str(caught.value) == "enough"
    assert key_files(repository) == before
    assert repository.locks() == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("stopped", [False, True])
def test_a_slow_key_that_cannot_be_removed_is_named(
    program: Program, repository: Repository, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    stop = StopRequest()
    added: list[str] = []

    def add() -> None:
        added.append(planted(repository))
        if stopped:
            stop.request(BackupError("enough"))

    adding(monkeypatch, add)
    monkeypatch.setattr(keys, "FAST_WORK", 1)
    with repository.program().backup(("--stdin-filename=vda.img",), lambda: None) as backup:
        backup.sink.write(b"data")
        wait_until(repository.locks, 10, "another program has locked the repository")
        with pytest.raises(BackupError, match="enough" if stopped else "too busy") as caught:
            add_fast_key(program, stop.check)
    for key in added:
        assert key[:8] in caught.value.message
        assert f"restic key remove {key[:8]}" in caught.value.hint
    assert len(remove_fast_keys(program, never_stop)) == len(added) == (1 if stopped else 3)


@pytest.mark.usefixtures("impatient")
def test_a_fast_key_is_used_though_a_slow_one_cannot_be_removed(
    program: Program, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = added_by_hand(repository)
    adding(monkeypatch, lambda: planted(repository))
    with repository.program().backup(("--stdin-filename=vda.img",), lambda: None) as backup:
        backup.sink.write(b"data")
        wait_until(repository.locks, 10, "another program has locked the repository")
        with pytest.raises(BackupError, match=f"not removed: key {slow[:8]}"):
            add_fast_key(program, never_stop)
    fast = add_fast_key(program, never_stop)
    assert (tried_first(program, fast), slow in key_files(repository)) == (True, False)


@pytest.mark.parametrize("others", [["node2"], [HOST, "node2"]])
def test_a_key_that_another_node_adds_meanwhile_is_no_error(
    program: Program, repository: Repository, monkeypatch: pytest.MonkeyPatch, others: list[str]
) -> None:
    slow: list[str] = []

    def add() -> None:
        if not slow:  # the first of ours is slow, and another node removes it
            slow.append(planted(repository))
            (repository.path / "keys" / slow[0]).unlink()
        else:
            for host in (*others, HOST):
                planted(repository, host)

    adding(monkeypatch, add)
    assert add_fast_key(program, never_stop).owner == f"{FAST_USER}@{HOST}"


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("work", [1 << 30, 1])
def test_two_nodes_may_add_keys_at_once(
    program: Program, repository: Repository, monkeypatch: pytest.MonkeyPatch, work: int
) -> None:
    before = key_files(repository)
    monkeypatch.setattr(keys, "FAST_WORK", work)
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(add_fast_key, program, never_stop) for _ in range(2)]
    if work > 1:
        assert {one.result().id for one in both} <= key_files(repository) - before
    else:
        errors = [str(one.exception()) for one in both]
        assert all("too busy" in error for error in errors)
        # each removal needs the repository for itself: one that is in the other's way for too long is named
        stay = key_files(repository) - before
        assert all(any(key[:8] in error for error in errors) for key in stay)


def test_a_new_key_that_the_password_does_not_open_is_removed(
    program: Program, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_files(repository)
    monkeypatch.setattr(keys, "FAST_WORK", 1 << 30)
    adding(monkeypatch, lambda: added_by_hand(repository, "another"))
    with pytest.raises(BackupError, match="the password does not open the key that restic added"):
        add_fast_key(program, never_stop)
    assert key_files(repository) == before


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("reads", ["", 'cat <"$9" >/dev/null; '])
def test_a_restic_that_hangs_is_ended(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    binary = tmp_path / "restic"
    binary.write_text(
        f'#!/bin/sh\ncase "$*" in *"key add"*) {reads}exec sleep 600 ;; esac\nexec restic "$@"\n'
    )
    binary.chmod(0o700)
    monkeypatch.setattr(program_module, "CALL_LIMIT", 8)
    program = replace(program, binary=str(binary), stall_timeout=8)
    with pytest.raises(BackupError, match="restic key add took more than 8 s"):
        add_fast_key(program, never_stop)


def test_a_restic_that_cannot_be_given_the_password_is_not_left_stopped(
    program: Program, repository: Repository
) -> None:
    began = time.monotonic()
    with pytest.raises(BlockingIOError):
        add_key(program, "a" * 200_000, 0.1, never_stop)
    assert time.monotonic() < began + 10
    assert repository.locks() == []


def test_a_restic_that_ends_before_it_reads_the_password_reports_why(
    program: Program, tmp_path: Path
) -> None:
    binary = tmp_path / "restic"
    binary.write_text('#!/bin/sh\nexec 3<"$9"; exec 3<&-; echo no space left >&2; exit 1\n')
    binary.chmod(0o700)
    with pytest.raises(ResticError, match="no space left"):
        add_key(replace(program, binary=str(binary)), "a" * 60_000, 0.1, never_stop)


def test_whether_a_node_uses_the_key_is_known(program: Program, repository: Repository) -> None:
    planted(repository, "node1")
    (key,) = (key for key in list_keys(program, never_stop) if key.fast)
    assert not tried_first(program, key)
    assert not tried_first(replace(program, environment={VARIABLE: "12345678"}), key)
    assert tried_first(replace(program, environment={VARIABLE: key.id[:8]}), key)
    unwritable = replace(program, state_dir="/proc/none")
    unwritable.key_hint.remember(key.id)
    assert not tried_first(unwritable, key)
    assert "this node uses it" not in fast_key_text(key, tried_first(unwritable, key))
    program.key_hint.remember(key.id)
    assert "this node uses it" in fast_key_text(key, tried_first(program, key))
