"""child_records.py: orphans are ended in good order, and no other process is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from backup.system.child_records import (
    ChildRecord,
    Recording,
    begin_to_end_orphans,
    end_orphans,
    end_programs_of,
    records_in,
)
from backup.system.process_group import Group, ProcessId, process_id

from ..waiting import runs, wait_until

pytestmark = pytest.mark.usefixtures("nothing_left")

ROOT = Path(__file__).parents[3]
# Starts a shell as the leader of a group, records it, prints its pid, and waits to be killed.
STARTER = """
import os, signal, subprocess, sys
from backup.system.child_records import Recording, ChildRecord, records_in

program = subprocess.Popen(["sh", "-c", sys.argv[2]], stdout=subprocess.DEVNULL, preexec_fn=os.setpgrp)
recording = Recording(records_in(sys.argv[1]), ChildRecord.for_child(program.pid, sys.argv[3], 0.0))
print(program.pid, flush=True)
signal.pause()
"""
# A wrapper whose child logs that it was interrupted.
WRAPPER = (
    "sh -c 'trap \"echo interrupted >{log}; exit\" INT; echo $$ >{pid}; while :; do sleep 0.01; done'; :"
)


@contextmanager
def started(
    directory: Path, line: str, leaves: str = "shared"
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start and record a program; return the process that started it, and its PID."""
    command = [sys.executable, "-c", STARTER, str(directory), line, leaves]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as starter:
        assert starter.stdout
        pid = int(starter.stdout.readline())
        try:
            yield starter, pid
        finally:
            starter.kill()
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    wait_until(lambda: not runs(pid), 5, "the program has ended")


def test_orphans_for_which_no_thread_can_be_started_do_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    begin_to_end_orphans(str(tmp_path))


def test_orphans_of_a_wrapper_are_interrupted(tmp_path: Path) -> None:
    log, child = tmp_path / "log", tmp_path / "pid"
    with started(tmp_path, WRAPPER.format(log=log, pid=child)) as (starter, pid):
        wait_until(lambda: child.exists() and child.read_text(), 5, "the wrapper's child runs")
        assert end_orphans(str(tmp_path)) == 0, "its starter is alive"
        assert runs(pid)
        starter.kill()
        starter.wait()
        assert end_orphans(str(tmp_path)) == 1
        assert not runs(pid)
        assert not runs(int(child.read_text()))
    assert log.read_text() == "interrupted\n"
    (one,) = records_in(str(tmp_path)).read()
    assert one.ended, "its leftovers are identified by this"
    assert int(child.read_text()) in one.pids
    assert one.dead
    assert end_orphans(str(tmp_path)) == 0


def test_programs_of_a_process_that_cannot_be_killed_are_ended_and_no_others(tmp_path: Path) -> None:
    line = "while :; do sleep 0.01; done"
    with started(tmp_path, line) as (stuck, pid), started(tmp_path, line) as (_, other):
        assert end_programs_of(stuck.pid, str(tmp_path)) == 1
        assert (runs(pid), runs(other)) == (False, True)


def test_orphans_that_ignore_the_interrupt_are_killed_and_records_of_harmless_ones_erased(
    tmp_path: Path,
) -> None:
    line = f"trap '' INT; touch {tmp_path}/up; while :; do sleep 0.01; done"
    with started(tmp_path, line, leaves="") as (starter, pid):
        wait_until((tmp_path / "up").exists, 5, "it ignores the interrupt")
        starter.kill()
        starter.wait()
        assert end_orphans(str(tmp_path), limit=0.1) == 1
        assert not runs(pid)
    assert list(records_in(str(tmp_path)).read()) == []


def test_a_reused_pid_is_not_signalled(tmp_path: Path) -> None:
    with started(tmp_path, "while :; do sleep 0.01; done") as (starter, pid):
        (one,) = records_in(str(tmp_path)).read()
        records_in(str(tmp_path)).erase(one)
        reused = replace(one, leader=ProcessId(pid, one.leader.began - 1), starter=ProcessId(starter.pid, 1))
        records_in(str(tmp_path)).write(reused)
        assert end_orphans(str(tmp_path)) == 0
        assert runs(pid)


@pytest.mark.parametrize("elsewhere", [{"namespace": 1}, {"boot": "another"}])
def test_records_of_another_boot_or_pid_namespace_are_not_used(
    tmp_path: Path, elsewhere: dict[str, object]
) -> None:
    with started(tmp_path, "while :; do sleep 0.01; done") as (_, pid):
        (one,) = records_in(str(tmp_path)).read()
        records_in(str(tmp_path)).write(replace(one, starter=ProcessId(1 << 22, 1), **elsewhere))  # type: ignore[arg-type]
        assert end_orphans(str(tmp_path)) == 0
        assert runs(pid)


LAST = b"sleep\x00100\x00"


def test_new_members_of_the_group_are_recorded(tmp_path: Path) -> None:
    line = f"until [ -e {tmp_path}/go ]; do sleep 0.01; done; sleep 100; :"
    with started(tmp_path, line) as (_, pid):
        (one,) = records_in(str(tmp_path)).read()
        (tmp_path / "go").touch()

        def children() -> list[int]:
            """Return the last sleep, which does not end."""
            members = Group(process_id(pid), os.getsid(0)).members()
            lines = {one.pid: Path(f"/proc/{one.pid}/cmdline") for one in members if one.pid != pid}
            return [one for one, path in lines.items() if path.exists() and path.read_bytes() == LAST]

        wait_until(children, 30, "it has a child")
        sleeps = children()

        def recorded() -> bool:
            (now,) = records_in(str(tmp_path)).read()
            return set(sleeps) <= set(now.pids)

        wait_until(recorded, 30, "it is recorded")
        assert one.leader == process_id(pid)


def test_a_program_that_ended_well_has_no_record(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "100"], preexec_fn=os.setpgrp) as program:
        for clean, left in ((False, 1), (True, 0)):
            recording = Recording(
                records_in(str(tmp_path)), ChildRecord.for_child(program.pid, "shared", 0.0)
            )
            recording.end(clean)
            assert len(list(records_in(str(tmp_path)).read())) == left
        program.kill()


def test_records_that_cannot_be_read_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "restic").mkdir()
    for name, content in (("1.json", "{"), ("2.json", "{}"), ("3.json", "[]"), ("4.json", "7")):
        (tmp_path / "restic" / name).write_text(content)
    assert list(records_in(str(tmp_path)).read()) == []
    assert end_orphans(str(tmp_path)) == 0
