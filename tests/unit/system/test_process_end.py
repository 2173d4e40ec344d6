"""backup/system/process_end.py: a process that not even SIGKILL ends is not waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[3]

# Ends like main.py while a process that it has started goes on: SIGKILL does nothing to it.
PROGRAM = """
import os, sys, time
from multiprocessing.context import SpawnProcess
import main
from backup.system.process import SPAWN
from backup.system.process_end import any_left, ended

def forks():
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)

if __name__ == "__main__":
    if sys.argv[1] == "stuck":
        SpawnProcess.kill = lambda _: None
    target, arguments = (forks, ()) if sys.argv[1] == "forks" else (time.sleep, (600,))
    process = SPAWN.Process(target=target, args=arguments)
    process.start()
    done = ended(process, 20 if sys.argv[1] == "forks" else 0.2)
    print(done, any_left(), process.exitcode, flush=True)
    main._end(7)
"""


def ended_like_main(tmp_path: Path, how: str) -> list[str]:
    """Give what the program printed; it has ended with its own exit code. Nothing of it is left."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        try:
            assert program.wait(timeout=180) == 7
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
        assert program.stdout
        return program.stdout.readline().split()


def test_a_process_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    assert ended_like_main(tmp_path, "killed") == ["True", "False", "-9"]


def test_a_process_that_cannot_be_killed_does_not_keep_this_one_from_ending(tmp_path: Path) -> None:
    assert ended_like_main(tmp_path, "stuck") == ["False", "True", "None"]


def test_what_a_process_has_forked_is_not_waited_for(tmp_path: Path) -> None:
    assert ended_like_main(tmp_path, "forks") == ["True", "False", "0"]
