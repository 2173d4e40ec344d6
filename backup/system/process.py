"""Starting Python processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager

# librados and libvirt have threads of their own, which do not survive a fork
SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def signals_blocked(
    numbers: Collection[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[None]:
    """Start a process with signals blocked.

    It unblocks them when its handlers are set; before that, Ctrl-C would end it with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
