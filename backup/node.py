"""What a run holds on its node: the directory of its notes, and the lock that keeps it alone."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import AlreadyRunning, BackupError, reason


def prepare_runtime_dir(path: str) -> None:
    """Make the directory, if need be. Raises BackupError if others could enter it."""
    directory = Path(path)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise BackupError(f"cannot make {path}: {reason(error)}", "see RUNTIME_DIR; are you root?") from error
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        mode = f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
        raise BackupError(f"others can enter {path} ({mode})", f"chmod 0700 {path}, or see RUNTIME_DIR")


def require_writable(path: str) -> None:
    """Raise BackupError unless a file can be put there."""
    directory = Path(path).parent
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        raise BackupError(f"cannot write to {directory}", "make it, or name another place")


@contextmanager
def only_run(runtime_dir: str) -> Iterator[None]:
    """Be the only run on this node during the block. Raises AlreadyRunning."""
    prepare_runtime_dir(runtime_dir)
    with Path(runtime_dir, "run.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            hint = "wait for it, or see `systemctl status virt-rbd-backup`"
            raise AlreadyRunning("another run is active on this node", hint) from error
        yield
