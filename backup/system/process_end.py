"""The end of processes that this one has started, also where not even SIGKILL ends them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

POLL = 0.02  # seconds between two checks whether it has ended

_left: list[SpawnProcess] = []


def ended(process: SpawnProcess, limit: float) -> bool:
    """Wait for a process to end, kill it after `limit` seconds, and wait once more; return whether it ended.

    In an uninterruptible sleep, or a frozen cgroup, it does not: it is left then.
    """
    if not _ended_by_itself(process, limit):
        process.kill()
        if not _ended_by_itself(process, limit):
            _left.append(process)
            return False
    return True


def _ended_by_itself(process: SpawnProcess, limit: float) -> bool:
    """Wait for its end; not with join(), which also waits for what the process has forked."""
    deadline = time.monotonic() + limit
    while process.exitcode is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def any_left() -> bool:
    """Return whether a process was left: Python's own way to end this one would wait for it."""
    return any(process.exitcode is None for process in _left)
