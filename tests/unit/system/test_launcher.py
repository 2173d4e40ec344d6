"""backup/system/launcher.py: what a program has when it begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backup.system.started_program import (
    NOTHING,
    Command,
    Setup,
    StartedProgram,
    outlet,
    printed,
    start_program,
)

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def _output(code: str, setup: Setup, *open_files: int) -> str:
    """Run code in a program of this setup, and return what it printed."""
    with outlet("stdout") as stdout:
        command = Command((sys.executable, "-Sc", code), ENVIRONMENT)
        program = start_program(command, NOTHING, stdout, stdout, setup, open_files)
        assert program.wait(60) == 0
        return printed(stdout).decode()


def test_no_code_of_python_runs_between_fork_and_exec() -> None:
    code = f"""
import os
from backup.system.started_program import NOTHING, Command, Setup, start_program
os.register_at_fork(after_in_child=lambda: os._exit(9))
command = Command(("true",), {ENVIRONMENT!r})
print(start_program(command, NOTHING, NOTHING, NOTHING, Setup(group=0)).wait())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == "0\n"


def test_a_program_has_the_environment_it_was_given_and_no_open_file_but_those() -> None:
    reading, writing = os.pipe()
    code = "import os; print(dict(os.environ)); print(sorted(map(int, os.listdir('/proc/self/fd'))))"
    try:
        environment, files = _output(code, Setup(), reading).splitlines()
    finally:
        os.close(reading)
        os.close(writing)
    assert environment == repr(ENVIRONMENT)
    assert files in (
        repr([0, 1, 2, 3, reading]),
        repr([0, 1, 2, reading, reading + 1]),
    )  # one is the listing's


def test_a_program_blocks_and_ignores_no_signal_although_we_do() -> None:
    ignored = (signal.SIGINT, signal.SIGPIPE)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        with outlet("stdout") as stdout:
            command = Command(("cat", "/proc/self/status"), ENVIRONMENT)
            assert start_program(command, NOTHING, stdout, stdout, Setup(signal.SIGTERM)).wait(60) == 0
            lines = printed(stdout).decode().splitlines()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    masks = {
        line.split(":")[0]: int(line.split()[1], 16)
        for line in lines
        if line.startswith(("SigB", "SigI", "SigC"))
    }
    assert masks["SigBlk"] == masks["SigIgn"] == masks["SigCgt"] == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.parametrize(("setup", "own"), [(Setup(), False), (Setup(group=0), True)])
def test_a_program_is_in_our_process_group_or_in_one_of_its_own(setup: Setup, own: bool) -> None:
    group, pid = map(int, _output("import os; print(os.getpgid(0), os.getpid())", setup).split())
    assert group == (pid if own else os.getpgid(0))


def test_a_program_joins_a_group_and_starts_even_if_there_is_none() -> None:
    waiting = start_program(Command(("sleep", "60"), ENVIRONMENT), NOTHING, NOTHING, NOTHING, Setup(group=0))
    try:
        assert int(_output("import os; print(os.getpgid(0))", Setup(group=waiting.pid))) == waiting.pid
    finally:
        waiting.kill()
        waiting.wait()
    assert int(_output("import os; print(os.getpgid(0))", Setup(group=waiting.pid))) == os.getpgid(0)


def test_a_program_may_have_a_limit_of_memory_and_a_low_priority() -> None:
    code = "import os, resource; print(resource.getrlimit(resource.RLIMIT_AS)[0], os.nice(0))"
    assert _output(code, Setup(memory=1 << 30, low_priority=True)).split() == [str(1 << 30), "10"]
    assert _output(code, Setup()).split() == ["-1", "0"]


def _started(path: str) -> StartedProgram:
    return start_program(Command((path,), ENVIRONMENT), NOTHING, NOTHING, NOTHING, Setup())


def test_a_program_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'no-such-program'"):
        _started("no-such-program")
    file = tmp_path / "program"
    file.write_text("exit 0\n")
    with pytest.raises(PermissionError, match=str(file)):
        _started(str(file))


def test_a_launcher_that_fails_before_the_program_begins_is_an_error() -> None:
    with outlet("stderr") as stderr:
        with pytest.raises(OSError, match="ended with 1 before it began"):
            start_program(
                Command(("true",), ENVIRONMENT), NOTHING, NOTHING, stderr, Setup(parent_death=1 << 20)
            )
        assert "prctl" in printed(stderr).decode()


def test_a_signal_of_ours_right_after_the_start_reaches_the_program() -> None:
    for _ in range(20):
        program = start_program(
            Command(("sleep", "60"), ENVIRONMENT), NOTHING, NOTHING, NOTHING, Setup(signal.SIGINT, group=0)
        )
        program.send_signal(signal.SIGINT)
        assert program.wait(30) == -signal.SIGINT
