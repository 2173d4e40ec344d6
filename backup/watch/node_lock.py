"""What a run holds on its node: the directory of its notes, and the lock that keeps it alone."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Callable

from ..errors import AlreadyRunning, BackupError, reason

WATCHDOG = "watchdog"  # in run.lock, in the place of a process's number
LOCK_POLL = 0.1  # seconds


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
def only_run(runtime_dir: str, check_stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Be the only run on this node during the block. Raises AlreadyRunning.

    A watchdog that is just thawing what a killed run has left is waited for.
    """
    prepare_runtime_dir(runtime_dir)
    with _run_lock(runtime_dir) as file:
        while not _locked(file):
            holder = _holder(file)
            if holder != WATCHDOG:
                who = f"process {holder}" if holder else "it"
                hint = f"wait for {who}, or see `systemctl status virt-rbd-backup`"
                raise AlreadyRunning("another run is active on this node", hint)
            check_stop()
            time.sleep(LOCK_POLL)
        _sign(file, str(os.getpid()))
        yield


@contextmanager
def as_watchdog(runtime_dir: str) -> Iterator[bool]:
    """Hold a run's lock during the block, if no run holds it, as one that others wait for; yield whether."""
    with _run_lock(runtime_dir) as file:
        locked = _locked(file)
        if locked:
            _sign(file, WATCHDOG)
        yield locked


def _run_lock(runtime_dir: str) -> BinaryIO:
    # without a buffer, which would be written once more at the end, though the directory were full
    return Path(runtime_dir, "run.lock").open("ab+", buffering=0)


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: BinaryIO) -> str:
    """Tell who holds the lock: a process's number, WATCHDOG, "" while it has not signed yet."""
    file.seek(0)
    return file.read().decode().strip()


def _sign(file: BinaryIO, holder: str) -> None:
    with suppress(OSError):  # a full directory: others then can't tell who it is
        file.truncate(0)
        file.write(holder.encode())
