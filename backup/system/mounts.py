"""Mount namespaces, and unmounting: system calls that Python does not have."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 1 << 17  # linux/sched.h
MS_REC, MS_SLAVE = 1 << 14, 1 << 19  # linux/mount.h
MNT_DETACH = 2  # linux/fs.h

_libc = ctypes.CDLL(None, use_errno=True)


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
