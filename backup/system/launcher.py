"""What a process does for itself before a program takes its place. Its text is run alone.

It runs in an interpreter of its own, not between fork and exec of the process that starts it: there all locks
that other threads had are held, and nobody releases them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress

PR_SET_PDEATHSIG = 1  # linux/prctl.h
IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(os.uname().machine)  # system call without a name in libc
IOPRIO_WHO_PROCESS, IOPRIO_CLASS_IDLE = 1, 3 << 13  # linux/ioprio.h
CLONE_NEWNS = 1 << 17  # linux/sched.h
NICE = 10  # guests and their storage come first

BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # by the process that starts it
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
OUR_GROUP = -1
READY = b"+"  # the program takes over, if no number of an error follows

_libc = ctypes.CDLL(None, use_errno=True)


def signal_when_parent_dies(number: int, parent: int) -> None:
    """Make the kernel send this process the signal when the thread that started it ends (man 2 prctl).

    `parent` is the pid of its process.
    """
    if _libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl PR_SET_PDEATHSIG")
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), number)


def lower_priority() -> None:
    """Give other processes of the node precedence for processors and disks."""
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    if IOPRIO_SET is not None:  # elsewhere the unit's IOSchedulingClass does it
        _libc.syscall(IOPRIO_SET, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE)


def join_mounts(pid: int) -> None:
    """Give this process the mount namespace of another one's first thread. Raises OSError."""
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(namespace, CLONE_NEWNS) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(namespace)


def launch(
    errors: int,
    parent: int,
    death: int,
    group: int,
    low_priority: int,
    memory: int,
    mounts: int,
    *program: str,
) -> None:
    """Prepare this process, and become the program, with our environment.

    `errors`: the descriptor for READY, and for the number of an error of exec. `parent`: our parent's pid.
    The others are those of Setup.
    """
    os.set_inheritable(errors, False)  # closed when the program has taken this process's place
    if group != OUR_GROUP:
        with suppress(OSError):
            os.setpgid(0, group)
    # What a terminal sent to the group of the parent by now is not for this one: to ignore it forgets it.
    for number in BLOCKED:
        if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP:  # nohup
            signal.signal(number, signal.SIG_IGN)
            signal.signal(number, signal.SIG_DFL)
    for number in IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    if death:
        signal_when_parent_dies(death, parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
    if low_priority:
        lower_priority()
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if mounts:
        with suppress(OSError):
            join_mounts(parent)
    os.write(errors, READY)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        os.write(errors, str(error.errno).encode())


if __name__ == "__main__":
    launch(*map(int, sys.argv[1:8]), *sys.argv[8:])  # type: ignore[arg-type]
