"""Waiting for a condition, and not for luck."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Callable


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until it is true. Fails the test after so many seconds of an idle machine."""
    within(condition, 4 * seconds, what)


def within(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until it is true. Fails the test after so many seconds, however busy the machine is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.002)


def runs(pid: int) -> bool:
    """Tell whether the process is there and has not ended (a zombie has)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def children() -> list[int]:
    """Give the pids of this process's children, zombies included."""
    pids: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            pids += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has just ended
    return pids


def open_files() -> int:
    """Count this process's file descriptors."""
    return len(os.listdir("/proc/self/fd"))


def waits_for_nobody(call: Callable[[], object]) -> None:
    """Make the call. Fails the test if it has not returned after ten seconds."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits"
