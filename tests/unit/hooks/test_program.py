"""backup/hooks/program.py: an admin's program gets its environment and input, and a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import Interrupted
from backup.hooks import program as admin_program
from backup.hooks.program import AdminProgram, ProgramFailed

from ..raising import raises
from ..waiting import runs, wait_until

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("nothing_left")


def run(
    line: str,
    limit: int = 20,
    stdin: bytes = b"",
    check_stop: Callable[[], None] = lambda: None,
    lines: list[str] | None = None,
) -> Sequence[str]:
    """Run a line of shell; give what it printed."""
    printed: list[str] = [] if lines is None else lines
    program = AdminProgram("hook x", ["/bin/sh", "-c", line], {"VIRT_RBD_BACKUP_RUN": "r\0un"}, limit)
    program.run(printed.append, check_stop, stdin)
    return printed


def test_it_gets_a_clean_environment_and_its_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    shells_own = {"PWD", "OLDPWD", "SHLVL", "_"}
    names = {line.partition("=")[0]: line.partition("=")[2] for line in run("env")}
    assert set(names) - shells_own <= {*admin_program.INHERITED, "LANG", "VIRT_RBD_BACKUP_RUN"}
    assert (names["VIRT_RBD_BACKUP_RUN"], names["PATH"]) == ("run", os.environ["PATH"])


def test_it_reads_only_its_standard_input() -> None:
    assert run("cat", stdin=b"a report\n") == ["a report"]
    assert run("cat; pwd") == ["/"]


def test_each_line_is_passed_on_as_soon_as_it_is_printed() -> None:
    lines: list[str] = []

    def stop_after_a_line() -> None:
        if lines:
            raise Interrupted("interrupted", 15)

    with raises("interrupted"):
        run("echo first >&2; sleep 1000", check_stop=stop_after_a_line, lines=lines)
    assert lines == ["first"]


def test_long_lines_many_lines_and_an_unfinished_line_are_all_passed_on() -> None:
    many = run("seq 100000; printf end")
    assert (len(many), many[-2:]) == (100001, ["100000", "end"])
    long = run("head --bytes=100000 /dev/zero | tr '\\0' x")
    assert "".join(long) == "x" * 100000
    assert max(map(len, long)) < 100000, "in pieces: there is no room for all of it"


def test_a_program_that_closes_its_output_is_waited_for() -> None:
    started = time.monotonic()
    assert run("exec >&- 2>&-; sleep 0.5") == []
    assert time.monotonic() - started > 0.4


def test_background_processes_are_not_waited_for(tmp_path: Path) -> None:
    assert run(f"sleep 1000 & echo $! >{tmp_path}/pid; echo done") == ["done"]
    pid = int((tmp_path / "pid").read_text())
    assert runs(pid), "an admin may want to have a service started"
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("exit 7", "hook x failed with exit code 7"),
        ("echo a; echo b; echo; echo c; echo d >&2; exit 1", "hook x failed with exit code 1: b; c; d"),
        ("kill -9 $$", "hook x was killed by SIGKILL"),
        ("exit 124", "hook x failed with exit code 124"),
    ],
)
def test_a_failure_is_reported_with_the_last_lines_of_output(line: str, message: str) -> None:
    with raises(message, ProgramFailed):
        run(line)


def test_a_program_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ProgramFailed) as caught:
        AdminProgram("hook x", ["/nowhere/x"], {}, 5).run(lambda _: None, lambda: None)
    assert caught.value.message.startswith("hook x failed with exit code 127: ")
    assert "/nowhere/x" in caught.value.message


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    started = time.monotonic()
    with raises("hook x took more than 1 s and was ended", ProgramFailed):
        run(f"sleep 1000 & echo $! >{tmp_path}/pid; wait", limit=1)
    assert 1 <= time.monotonic() - started < 5
    assert not runs(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    "line", ["trap '' TERM; {}", "(trap '' TERM; {}) & sleep 1000"], ids=["it", "its child"]
)
def test_a_program_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(admin_program, "KILL_AFTER", 1)
    stubborn = f"sh -c 'echo $PPID >{tmp_path}/pid'; while :; do sleep 0.05; done"
    with raises("hook x took more than 1 s and was ended", ProgramFailed):
        run(line.format(stubborn), limit=1)
    wait_until(lambda: not runs(int((tmp_path / "pid").read_text())), 5, "it has ended")


def test_a_request_to_stop_ends_it_at_once(tmp_path: Path) -> None:
    def check_stop() -> None:
        if (tmp_path / "pid").exists():
            raise Interrupted("interrupted", 15)

    started = time.monotonic()
    with raises("interrupted", Interrupted):
        run(f"sleep 1000 & echo $! >{tmp_path}/pid; wait", check_stop=check_stop)
    assert time.monotonic() - started < 5
    assert not runs(int((tmp_path / "pid").read_text()))


PARENT = """
import sys
from backup.hooks.program import AdminProgram
AdminProgram("hook x", ["/bin/sh", "-c", sys.argv[1]], {}, 1000).run(print, lambda: None)
"""


def test_when_the_process_that_runs_it_is_killed_all_of_it_ends(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    line = f"sleep 1000 & echo $$ $! >{pids}; wait"
    with subprocess.Popen([sys.executable, "-c", PARENT, line], cwd=ROOT) as parent:
        wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"), 10, "it runs")
        parent.kill()
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda: not runs(pid), 5, "it has ended")  # noqa: B023
