"""backup/watchdog.py: guests are let go when every other process of the run was killed, and not before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backup.journal import Hold, Journal

from .driver_node import domain_element, node_uri
from .samples import UUID, domain
from .waiting import wait_until

ROOT = Path(__file__).parents[2]

# A run with a worker that waits; says their pids.
RUN = """
import os, signal, sys
from multiprocessing.connection import Connection
from backup.console import Console
from backup.node import only_run
from backup.process import SPAWN
from backup.watchdog import watched
from tests.unit.samples import settings

def worker(_lifeline):
    signal.pause()

if __name__ == "__main__":
    ours = settings(runtime_dir=sys.argv[1])
    with only_run(ours.runtime_dir), watched(ours, Console(sys.stderr)) as lifeline:
        process = SPAWN.Process(target=worker, args=(lifeline,))
        process.start()
        print(os.getpid(), process.pid, flush=True)
        if sys.argv[2:] == ["ends"]:
            process.kill()
        process.join()
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Notes of a domain that is held still."""
    runtime_dir = tmp_path / "run"
    runtime_dir.mkdir(mode=0o700)
    journal = Journal(str(runtime_dir))
    uri = node_uri(tmp_path / "node.xml", domain_element())
    journal.write(domain(uri=uri), Hold.PAUSE)
    return journal


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "run.py"
    path.write_text(RUN)
    return path


def test_guests_are_let_go_once_the_last_process_of_the_run_was_killed(
    journal: Journal, program: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(program), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        assert run.stderr
        main, worker = map(int, run.stdout.readline().split())
        os.kill(main, signal.SIGKILL)
        run.wait()
        os.kill(worker, 0)  # it lives, and would let its guest go itself
        assert journal.holds(UUID)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not journal.holds(UUID), 10, "the watchdog let the guest go")
        assert "let go: a backup that was killed had left a pause behind" in run.stderr.read()


def test_a_run_that_ends_well_leaves_the_notes_to_its_own_care(
    journal: Journal, program: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(program), str(tmp_path / "run"), "ends"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=30)
    assert journal.holds(UUID)
    assert done.stderr == ""
