"""How processes are started here, and what one asks of the kernel about its parent."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# librados and libvirt have threads of their own, which do not survive a fork
SPAWN = multiprocessing.get_context("spawn")

PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)  # loaded before any fork, where loading could deadlock


def signal_when_parent_dies(number: signal.Signals, parent: int) -> None:
    """Let the kernel send this process the signal when the thread that started it ends (man 2 prctl).

    `parent` is the pid of its process.
    """
    if _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl PR_SET_PDEATHSIG")
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), number)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Have a process that is started in the block begin with these signals blocked.

    It unblocks them when its handlers stand; before, Ctrl-C would end it with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
