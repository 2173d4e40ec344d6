"""Checks that this node can mount a file system of segments."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from backup.errors import BackupError, reason
from backup.system.mounts import unshare_mounts


def fuse_problems() -> Sequence[BackupError]:
    """Return what prevents it: no FUSE, or no permission for a private mount namespace."""
    try:
        with open("/dev/fuse", "rb"):
            pass
    except OSError as error:
        hint = "modprobe fuse; a container needs the device, a systemd unit res/restic-incremental.conf"
        return [BackupError(f"cannot open /dev/fuse: {reason(error)}", hint)]
    try:
        with ThreadPoolExecutor(1) as thread:  # the namespace ends with the thread
            thread.submit(unshare_mounts).result()
    except OSError as error:
        hint = "run it as root with CAP_SYS_ADMIN; a systemd unit needs res/restic-incremental.conf"
        return [BackupError(f"cannot create a private mount namespace: {reason(error)}", hint)]
    return ()
