"""locks.py: a lock is removed only if a provably dead restic of our own left it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest

from backup.system.child_records import ChildRecord, records_in
from backup.system.process_group import ProcessId, process_id
from outputs.restic import Restic
from outputs.restic_repository.child import LOCKS
from outputs.restic_repository.locks import FRESH, Lock, left_by
from outputs.restic_repository.messages import ResticError

from ..repository import Repository
from ..waiting import runs, wait_until

pytestmark = pytest.mark.usefixtures("nothing_left")

ROOT = Path(__file__).parents[3]


@contextmanager
def killed(repository: Repository, directory: Path) -> Iterator[int]:
    """Kill a restic and its writer at once, so that its lock stays; return its pid."""
    command = [sys.executable, "-m", "tests.unit.hanging_writer", str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        pid = int(writer.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        writer.kill()
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not runs(pid), 5, "restic is dead")
    assert len(repository.locks()) == len(repository.records()) == 1
    yield pid


def test_the_lock_of_a_killed_restic_is_removed_and_no_process_is_signalled(
    repository: Repository, tmp_path: Path
) -> None:
    with killed(repository, tmp_path):
        Restic(repository.program()).discard((), wait_if_busy=False)
    assert (repository.locks(), repository.records()) == ([], [])


def test_a_command_on_another_repository_leaves_the_record_to_one_on_its_own(
    repository: Repository, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "locks").mkdir(parents=True)
    with killed(repository, tmp_path):
        Restic(repository.program(repository=str(other))).discard((), wait_if_busy=False)
        assert len(repository.locks()) == len(repository.records()) == 1
        Restic(repository.program()).discard((), wait_if_busy=False)
    assert (repository.locks(), repository.records()) == ([], [])


def test_a_foreign_lock_beside_it_stays(repository: Repository, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "RESTIC_REPOSITORY": str(repository.path),
        "RESTIC_PASSWORD_FILE": str(repository.password_file),
    }
    command = ["restic", "--no-cache", "backup", "--stdin"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as other:
        wait_until(repository.locks, 10, "the other restic has its lock")
        (foreign,) = repository.locks()
        other.kill()
    command = [sys.executable, "-m", "tests.unit.hanging_writer", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        pid = int(writer.stdout.readline())
        os.kill(pid, signal.SIGKILL)
        writer.kill()
    wait_until(lambda: not runs(pid), 5, "restic is dead")
    assert len(repository.locks()) == 2
    Restic(repository.program()).discard((), wait_if_busy=False)
    assert repository.locks() == [foreign]


def test_the_lock_of_a_killed_key_command_is_removed(repository: Repository, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    program = repository.program()
    arguments = ("key", "add", f"--new-password-file={tmp_path / 'fifo'}")
    with suppress(ResticError), program.running(*arguments, limit=30, check_stop=lambda: None) as child:
        wait_until(repository.locks, 10, "restic has its lock")
        child.group.send(signal.SIGKILL)
    assert len(repository.locks()) == 1
    Restic(program).discard((), wait_if_busy=False)
    assert (repository.locks(), repository.records()) == ([], [])


@pytest.mark.parametrize("command", ["list", "add", "remove"])
def test_key_commands_lock_the_repository_as_listed(
    repository: Repository, tmp_path: Path, command: str
) -> None:
    (tmp_path / "new").write_text("another")
    new = (f"--new-password-file={tmp_path / 'new'}",)
    more = {"list": (), "add": new, "remove": ("0123",)}[command]
    with repository.program().backup(("--stdin-filename=vda.img",), lambda: None) as backup:
        backup.sink.write(b"data")
        wait_until(repository.locks, 10, "restic has its shared lock")
        alone = LOCKS[f"key {command}"] == "exclusive"
        with pytest.raises(ResticError, match="already locked") if alone else nullcontext():
            repository.program().call("key", command, *more, limit=30)


def test_the_lock_of_a_running_restic_stays(repository: Repository) -> None:
    program = repository.program()
    with program.backup(("--stdin-filename=vda.img",), lambda: None) as backup:
        backup.sink.write(b"data")
        wait_until(repository.locks, 10, "restic has its lock")
        Restic(program).discard((), wait_if_busy=False)
        assert len(repository.locks()) == len(repository.records()) == 1
    assert (repository.locks(), repository.records()) == ([], [])


def test_without_a_record_restic_is_not_called(repository: Repository, tmp_path: Path) -> None:
    (repository.path / "locks" / ("0" * 64)).touch()
    Restic(repository.program("/nowhere/restic")).discard((), wait_if_busy=False)
    assert len(repository.locks()) == 1


NOW = 1_700_000_000.0
GONE = ProcessId(1 << 22, 5)  # above pid_max
OURS = ChildRecord.for_child(os.getpid(), "shared", NOW)
DEAD = replace(OURS, leader=GONE, began=NOW, ended=NOW + 10, host="node1", uid=0)


def lock(at: float = NOW + 1, **changes: Any) -> Lock:
    own = Lock("a" * 64, "node1", GONE.pid, 0, False, datetime.fromtimestamp(at, timezone.utc))
    return replace(own, **changes)


@pytest.mark.parametrize("at", [NOW - 1, NOW, NOW + 10, NOW + 11])
def test_a_lock_with_its_time_process_host_and_user_was_left_by_the_dead_restic(at: float) -> None:
    assert left_by(DEAD, lock(at))


@pytest.mark.parametrize(
    "other",
    [
        lock(NOW - 3),
        lock(NOW + 13),
        lock(host="node2"),
        lock(pid=GONE.pid + 1),
        lock(uid=1000),
        lock(exclusive=True),  # a prune's
        Lock("a" * 64),
    ],
)
def test_a_lock_that_differs_in_anything_is_foreign(other: Lock) -> None:
    assert not left_by(DEAD, other)


def test_a_child_of_a_wrapper_may_have_left_the_lock() -> None:
    assert left_by(replace(DEAD, members=(ProcessId(77, 6),)), lock(pid=77))


def test_forget_leaves_an_exclusive_lock() -> None:
    assert left_by(replace(DEAD, leaves="exclusive"), lock(exclusive=True))
    assert not left_by(replace(DEAD, leaves="exclusive"), lock())


def test_without_a_known_end_a_later_lock_matches_too() -> None:
    open_ended = replace(DEAD, ended=None)
    assert left_by(open_ended, lock(NOW + 4000))
    assert open_ended.dead
    assert not replace(open_ended, leader=ProcessId(os.getpid(), 1)).dead, "another process has the pid now"
    assert replace(DEAD, leader=ProcessId(os.getpid(), 1)).dead, "but it had ended before"
    assert not replace(DEAD, leader=process_id(os.getpid())).dead
    assert not replace(DEAD, namespace=1).dead, "its pid says nothing here"


class FarAway:
    """A repository with locks, whose files cannot be removed; restic's calls are counted."""

    def __init__(self, directory: Path, *pids: int) -> None:
        self.directory = directory
        self.path = directory / "restic"
        self.path.write_text(
            "#!/bin/sh\n"
            f'echo "$*" >>{directory}/calls\n'
            f'case "$*" in *list*) cat {directory}/locks ;; *cat*) cat {directory}/$4 ;;\n'
            f"*unlock*) : >{directory}/locks ;; esac\n"
        )
        self.path.chmod(0o700)
        self.identities = identities = [f"{pid:064x}" for pid in pids]
        (directory / "locks").write_text("".join(f"{one}\n" for one in identities))
        for pid, identity in zip(pids, identities):
            (directory / identity).write_text(
                '{"time": "2023-11-14T22:13:21.123456789Z", "exclusive": false, "hostname": "node1", '
                f'"pid": {pid}}}'
            )

    def lock(self, pid: int, host: str, age: float) -> None:
        """Have a lock of another host and time, age in seconds."""
        taken = datetime.fromtimestamp(time.time() - age, timezone.utc).isoformat()
        identity = self.identities[[int(one, 16) for one in self.identities].index(pid)]
        content = {"time": taken, "exclusive": False, "hostname": host, "pid": pid}
        (self.directory / identity).write_text(json.dumps(content))

    def fails_to_read(self, script: str) -> None:
        """Have the call for a lock's content do this, and fail."""
        self.path.write_text(self.path.read_text().replace("*cat*) ", f"*cat*) {script}; exit 1; "))

    def discard(self, repository: Repository) -> None:
        program = repository.program(str(self.path), repository="sftp:host:/backups")
        records_in(str(repository.runtime_dir)).write(DEAD)
        Restic(program).discard((), wait_if_busy=False)

    def calls(self) -> list[str]:
        return [call.split()[1] for call in (self.directory / "calls").read_text().splitlines()]


def test_without_access_to_the_files_all_locks_are_removed_if_all_are_dead(
    repository: Repository, tmp_path: Path
) -> None:
    far = FarAway(tmp_path, GONE.pid)
    far.discard(repository)
    assert far.calls() == ["list", "cat", "list", "unlock"]
    assert "unlock --quiet" in (tmp_path / "calls").read_text()
    assert repository.records() == []


def test_without_access_to_the_files_a_foreign_lock_prevents_the_removal_and_is_reported(
    repository: Repository, tmp_path: Path
) -> None:
    far = FarAway(tmp_path, GONE.pid, 77)
    with pytest.raises(ResticError, match=r"of 2023-11-14 22:13:21 UTC \(PID 77 on node1\)") as caught:
        far.discard(repository)
    assert "unlock --remove-all" in caught.value.hint
    assert "unlock" not in far.calls()
    assert len(repository.records()) == 1, "another run may be able to"


@pytest.mark.parametrize(
    ("host", "age", "removed"),
    [
        ("node2", 5, True),
        ("node2", FRESH - 60, True),
        ("node2", FRESH + 1, False),  # restic may find it half an hour old
        ("node2", -3600, True),
        (gethostname(), 5, False),
        ("", 5, False),
    ],
)
def test_ours_are_removed_beside_locks_that_restic_unlock_certainly_leaves(
    repository: Repository, tmp_path: Path, host: str, age: float, removed: bool
) -> None:
    far = FarAway(tmp_path, GONE.pid, 77)
    far.lock(77, host, age)
    with nullcontext() if removed else pytest.raises(ResticError, match="cannot remove one of 2 locks"):
        far.discard(repository)
    assert ("unlock" in far.calls()) is removed
    assert (repository.records() == []) is removed


def test_a_lock_that_cannot_be_read_now_is_an_error_and_the_record_stays(
    repository: Repository, tmp_path: Path
) -> None:
    far = FarAway(tmp_path, GONE.pid)
    far.fails_to_read("echo connection lost >&2")
    with pytest.raises(ResticError, match="restic cat failed with exit code 1: connection lost"):
        far.discard(repository)
    assert len(repository.records()) == 1, "another run may read it"


@pytest.mark.parametrize("script", [": >{}/locks", "echo load: invalid data returned >&2"])
def test_one_that_has_gone_meanwhile_or_is_damaged_is_not_ours(
    repository: Repository, tmp_path: Path, script: str
) -> None:
    far = FarAway(tmp_path, GONE.pid)
    far.fails_to_read(script.format(tmp_path))
    far.discard(repository)
    assert ("unlock" in far.calls(), repository.records()) == (False, [])


def test_a_record_without_a_lock_or_of_another_boot_is_erased(repository: Repository, tmp_path: Path) -> None:
    far = FarAway(tmp_path, 77)
    far.discard(repository)
    assert (far.calls(), repository.records()) == (["list", "cat"], [])
    records_in(str(repository.runtime_dir)).write(replace(DEAD, boot="another"))
    Restic(repository.program("/nowhere/restic")).discard((), wait_if_busy=False)
    assert repository.records() == []
