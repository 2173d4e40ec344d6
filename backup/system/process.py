"""Starting Python processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# librados and libvirt have threads of their own, which do not survive a fork
SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start a process with SIGINT and SIGTERM blocked.

    It unblocks them when its handlers are set; before that, Ctrl-C would end it with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
