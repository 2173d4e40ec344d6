"""Starting Python processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

# librados and libvirt have threads of their own, which do not survive a fork
SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def spawning() -> Iterator[None]:
    """Start a Python process with Ctrl-C and SIGTERM blocked. Raises OSError.

    It unblocks them when its handlers are set; before that, Ctrl-C would end it with a traceback.
    """
    resource_tracker.ensure_running()  # Python 3.11 unblocks them as it starts it, with the first process
    with signals_blocked((signal.SIGINT, signal.SIGTERM)):
        yield


@contextmanager
def signals_blocked(numbers: Collection[signal.Signals]) -> Iterator[None]:
    """Start a process with these signals blocked, which it unblocks itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_resource_tracker() -> None:
    """Close this process's end of the pipe of Python's resource tracker, which ends with the last one.

    For a process that outlives the one that started the tracker: Python 3.13 waits for it as that one ends,
    without a limit. Later versions do this at a fork, and have none any more.
    """
    tracker: Any = getattr(resource_tracker, "_resource_tracker", None)
    if (descriptor := getattr(tracker, "_fd", None)) is not None:
        tracker._fd = None
        with suppress(OSError):
            os.close(descriptor)
