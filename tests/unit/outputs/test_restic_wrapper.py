"""outputs/restic_repository/child.py: a wrapper as RESTIC_BINARY that runs restic as a child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backup.errors import BackupError, Interrupted
from backup.system.child_records import end_orphans
from backup.system.pipe_writer import Stalled
from backup.system.process_group import Group
from backup.system.stop_request import StopRequest
from outputs.restic import Restic
from outputs.restic_repository.program import Program

from ..raising import raises
from ..repository import Repository
from ..samples import MIB
from ..waiting import children, runs, wait_until

pytestmark = pytest.mark.usefixtures("nothing_left")

ROOT = Path(__file__).parents[3]
ARGUMENTS = ("--host=web", "--stdin-filename=vda.img")


@pytest.fixture
def wrapper(tmp_path: Path) -> str:
    """A wrapper that writes restic's pid into a file."""
    path = tmp_path / "wrapper"
    path.write_text(
        f'#!/bin/sh\nexport LANG=C\nexec 3<&0\nrestic "$@" <&3 3<&- &\necho $! >{tmp_path}/pid\nwait $!\n'
    )
    path.chmod(0o700)
    return str(path)


def restic_of(directory: Path) -> int:
    path = directory / "pid"
    wait_until(lambda: path.exists() and path.read_text(), 10, "the wrapper has started restic")
    return int(path.read_text())


def assert_nothing_left(repository: Repository, restic: int) -> None:
    assert not runs(restic)
    assert repository.snapshot_count() == 0
    Restic(repository.program()).discard((), wait_if_busy=False)
    assert (repository.locks(), repository.records()) == ([], [])


def test_a_block_that_raises_ends_the_wrapper_s_restic(
    repository: Repository, wrapper: str, tmp_path: Path
) -> None:
    backup = repository.program(wrapper).backup(ARGUMENTS, lambda: None)
    with raises("the cluster is gone"), backup as running:
        running.sink.write(os.urandom(4 * MIB))
        restic = restic_of(tmp_path)
        raise BackupError("the cluster is gone")
    assert_nothing_left(repository, restic)


def test_a_stall_ends_the_wrapper_s_restic(repository: Repository, wrapper: str, tmp_path: Path) -> None:
    def back_up() -> None:
        with repository.program(wrapper, stall_timeout=0.5).backup(ARGUMENTS, lambda: None) as running:
            running.sink.write(os.urandom(MIB))
            wait_until(repository.locks, 10, "restic has its lock")
            os.kill(restic_of(tmp_path), signal.SIGSTOP)
            running.sink.write(os.urandom(16 * MIB))

    with pytest.raises(Stalled) as caught:
        back_up()
    assert caught.value.transient
    assert_nothing_left(repository, restic_of(tmp_path))


def test_a_request_to_stop_ends_the_wrapper_s_restic(
    repository: Repository, wrapper: str, tmp_path: Path
) -> None:
    stop = StopRequest()
    with (
        raises("interrupted", Interrupted),
        repository.program(wrapper).backup(ARGUMENTS, stop.check) as running,
    ):
        running.sink.write(os.urandom(4 * MIB))
        restic = restic_of(tmp_path)
        stop.request(Interrupted("interrupted", signal.SIGTERM))
        running.sink.write(b"more")
    assert_nothing_left(repository, restic)


def test_a_wrapper_that_is_killed_takes_its_restic_with_it(
    repository: Repository, wrapper: str, tmp_path: Path
) -> None:
    def back_up() -> None:
        before = set(children())
        with repository.program(wrapper).backup(ARGUMENTS, lambda: None) as running:
            running.sink.write(os.urandom(4 * MIB))
            restic_of(tmp_path)
            (pid,) = set(children()) - before
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not runs(pid), 5, "the wrapper is dead")

    with pytest.raises(BackupError, match="restic backup was killed by SIGKILL") as caught:
        back_up()
    assert caught.value.transient
    assert_nothing_left(repository, restic_of(tmp_path))


WORKER = """
import os, signal, sys
from pathlib import Path
from tests.unit.repository import Repository

signal.signal(signal.SIGINT, signal.SIG_IGN)
program = Repository(Path(sys.argv[1])).program(sys.argv[2])
with program.backup(("--host=web", "--stdin-filename=vda.img"), lambda: None) as backup:
    backup.sink.write(os.urandom(4 << 20))
    print("writes", flush=True)
    signal.pause()
"""


def test_the_restic_of_a_killed_worker_is_ended_by_the_next_process(
    repository: Repository, wrapper: str, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path), wrapper], cwd=ROOT, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout
        worker.stdout.readline()
        restic = restic_of(tmp_path)
        wait_until(repository.locks, 10, "restic has its lock")
        os.kill(restic, signal.SIGSTOP)  # or it may be done before anybody comes
        worker.kill()
    os.kill(restic, signal.SIGCONT)
    end_orphans(str(repository.runtime_dir))
    assert not runs(restic)
    Restic(repository.program()).discard((), wait_if_busy=False)
    assert (repository.locks(), repository.records()) == ([], [])


def test_after_success_no_process_of_the_group_is_left(repository: Repository, tmp_path: Path) -> None:
    path = tmp_path / "wrapper"
    path.write_text(f'#!/bin/sh\nsleep 100 &\necho $! >{tmp_path}/pid\nrestic "$@"\n')
    path.chmod(0o700)
    with repository.program(str(path)).backup(ARGUMENTS, lambda: None) as running:
        running.sink.write(b"data")
        rest = restic_of(tmp_path)
    assert not runs(rest)
    assert running.summary
    assert repository.snapshot_count() == 1


@pytest.mark.parametrize("command", ["snapshots", "backup", "forget"])
def test_a_terminal_s_ctrl_c_reaches_no_restic(repository: Repository, tmp_path: Path, command: str) -> None:
    path = tmp_path / "shows-its-group"
    path.write_text("#!/bin/sh\nexec cut -d' ' -f5 /proc/self/stat\n")
    path.chmod(0o700)
    program: Program = repository.program(str(path))
    assert int(program.call(command, limit=10)) != os.getpgid(0)


def test_an_empty_group_has_no_members() -> None:
    with subprocess.Popen(["true"], preexec_fn=os.setpgrp) as program:
        group = Group.led_by(program.pid)
    assert not group.members()
    assert group.ended(0)
