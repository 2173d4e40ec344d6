"""backup/system/process.py: a signal finds no process that is not prepared for it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

# Starts the first process of its own, then prints which signals are still blocked.
PROGRAM = """
import signal, time
from backup.system.process import SPAWN, spawning

if __name__ == "__main__":
    process = SPAWN.Process(target=time.sleep, args=(0,))
    with spawning():
        process.start()
        print(*sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))))
    print(*signal.pthread_sigmask(signal.SIG_BLOCK, []))
    process.join()
"""


def test_signals_are_blocked_until_the_first_process_is_started() -> None:
    """Python starts its resource tracker with the first one, after which 3.11 unblocks them."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    blocked = f"{int(signal.SIGINT)} {int(signal.SIGTERM)}"
    assert done.stdout.splitlines() == [blocked, ""]
