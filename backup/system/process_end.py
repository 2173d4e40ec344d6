"""The end of processes that this one has started, also where not even SIGKILL ends them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_left: list[SpawnProcess] = []


def ended(process: SpawnProcess, limit: float) -> bool:
    """Wait for a process to end, kill it after `limit` seconds, and wait once more; return whether it ended.

    In an uninterruptible sleep, or a frozen cgroup, it does not: it is left then.
    """
    process.join(limit)
    if process.exitcode is None:
        process.kill()
        process.join(limit)
    if process.exitcode is None:
        _left.append(process)
    return process.exitcode is not None


def any_left() -> bool:
    """Return whether a process was left: Python's own way to end this one would wait for it."""
    return any(process.exitcode is None for process in _left)
