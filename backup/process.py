"""What a process asks of the kernel about its parent."""

from __future__ import annotations

import ctypes
import os
import signal

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
