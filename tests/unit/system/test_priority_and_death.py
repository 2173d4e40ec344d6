"""backup/system/launcher.py: a process ends with its parent, and yields to other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from ..waiting import wait_until

ROOT = Path(__file__).parents[3]

# Starts a process that records when it listens and when it is signalled, then waits to be killed.
PARENT = """
import signal, subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
signal.pause()
"""
CHILD = """
import os, signal, sys
from pathlib import Path
from backup.system.launcher import signal_when_parent_dies

def signalled(number, frame):
    Path(sys.argv[1], "signalled").write_text(str(number))
    sys.exit()

signal.signal(signal.SIGTERM, signalled)
signal_when_parent_dies(signal.SIGTERM, os.getppid())
Path(sys.argv[1], "listens").write_text(str(os.getpid()))
signal.pause()
"""


def test_a_process_gets_the_signal_when_its_parent_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, CHILD, str(tmp_path)]
    listens, signalled = tmp_path / "listens", tmp_path / "signalled"
    with subprocess.Popen(command, cwd=ROOT) as parent:
        wait_until(lambda: listens.exists() and listens.read_text(), 5, "the child listens")
        assert not signalled.exists()
        parent.kill()
    try:
        wait_until(lambda: signalled.exists() and signalled.read_text(), 5, "the child is signalled")
    finally:
        with suppress(ProcessLookupError):  # it has ended, as it should
            os.kill(int(listens.read_text()), signal.SIGKILL)
    assert int(signalled.read_text()) == signal.SIGTERM


def test_a_process_of_lower_priority_gets_processors_and_disks_last() -> None:
    code = """
import os
from backup.system.launcher import NICE, lower_priority
os.nice(NICE + 5)
lower_priority()
print(os.nice(0) - NICE)
"""
    shown = "from backup.system.launcher import lower_priority as let; let(); import os; print(os.nice(0))"
    look = "ionice --pid $PPID"
    for program, expected in ((code, "5"), (shown, "10")):
        script = f"{program}\nos.system({look!r})"
        printed = subprocess.run(
            [sys.executable, "-uc", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()
        assert printed == [expected, "idle"]
