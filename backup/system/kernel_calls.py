"""System calls of a process for itself that Python does not have."""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG = 1  # linux/prctl.h
IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(os.uname().machine)  # system call without a name in libc
IOPRIO_WHO_PROCESS, IOPRIO_CLASS_IDLE = 1, 3 << 13  # linux/ioprio.h
CLONE_NEWNS = 1 << 17  # linux/sched.h
MS_REC, MS_SLAVE = 1 << 14, 1 << 19  # linux/mount.h
MNT_DETACH = 2  # linux/fs.h
NICE = 10  # guests and their storage come first

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


def unshare_mounts() -> None:
    """Give this thread, and what it starts from now on, a private mount namespace (man 7 mount_namespaces).

    Mounts and unmounts of others are visible here, but not the other way round. Raises OSError.
    """
    if _libc.unshare(CLONE_NEWNS) != 0 or _libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unmount(path: str) -> None:
    """Unmount the file system on this path, at once also if it is in use (man 2 umount). Raises OSError."""
    if _libc.umount2(os.fsencode(path), MNT_DETACH) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def join_mounts(pid: int) -> None:
    """Give this process the mount namespace of another one's first thread. Raises OSError."""
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(namespace, CLONE_NEWNS) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(namespace)
