"""RUNTIME_DIR, and the lock that allows one run at a time on this node, or one of each group."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Callable

from ..command import GROUP, UNIT
from ..errors import AlreadyRunning, BackupError, reason
from ..system.private_directory import make_private
from ..system.process_group import pid_in_use

WATCHDOG = "watchdog"  # in run.lock, instead of a process id
LOCK_POLL = 0.1  # seconds
OWNER_LIMIT = 2.0  # seconds for the lock's owner to write what it is; until then the last one is in the file


def prepare_runtime_dir(path: str) -> None:
    """Create the directory, if missing. Raises BackupError if other users can access it."""
    directory = Path(path)
    try:
        make_private(directory)
        status = directory.stat()
    except OSError as error:
        raise BackupError(
            f"cannot create {path}: {reason(error)}", "see RUNTIME_DIR; are you root?"
        ) from error
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        mode = f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
        raise BackupError(f"other users can access {path} ({mode})", f"chmod 0700 {path}, or see RUNTIME_DIR")


def require_writable(path: str) -> None:
    """Raise BackupError unless the directory of the file is writable."""
    directory = Path(path).parent
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        raise BackupError(f"cannot write to {directory}", "create it, or set another path")


@contextmanager
def only_run(runtime_dir: str, check_stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the node's lock during the block. Raises AlreadyRunning if another run holds it.

    A watchdog that is thawing the guests of a killed run is waited for.
    """
    prepare_runtime_dir(runtime_dir)
    with _run_lock(runtime_dir) as file:
        deadline = time.monotonic() + OWNER_LIMIT
        while not _locked(file):
            owner = _owner(file)
            if owner != WATCHDOG and (_runs(owner) or time.monotonic() > deadline):
                name = f"process {owner}" if owner else "it"
                hint = f"wait for {name}, or see `systemctl status {UNIT}`"
                of_group = f" of group {GROUP}" if GROUP else ""
                active = f"{owner} since {os.fstat(file.fileno()).st_mtime_ns}"
                raise AlreadyRunning(f"another run{of_group} is active on this node", hint, active)
            check_stop()
            time.sleep(LOCK_POLL)
        _write_owner(file, str(os.getpid()))
        yield


@contextmanager
def as_watchdog(runtime_dir: str) -> Iterator[bool]:
    """Hold the node's lock for the watchdog during the block, if it is free; yield whether it was."""
    with _run_lock(runtime_dir) as file:
        locked = _locked(file)
        if locked:
            _write_owner(file, WATCHDOG)
        yield locked


def _run_lock(runtime_dir: str) -> BinaryIO:
    # unbuffered: a buffer would be written again on close, which fails if the directory is full
    return Path(runtime_dir, "run.lock").open("ab+", buffering=0)


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(file: BinaryIO) -> str:
    """Return the lock's owner: a process id, WATCHDOG, "" while it has not written its id yet."""
    file.seek(0)
    return file.read().decode().strip()


def _runs(owner: str) -> bool:
    """Return whether the owner is a process that runs here, as far as that is known."""
    try:
        return owner.isdecimal() and pid_in_use(int(owner))
    except OSError:  # out of files
        return True


def _write_owner(file: BinaryIO, owner: str) -> None:
    with suppress(OSError):  # the directory is full: then the owner is unknown to others
        file.truncate(0)
        file.write(owner.encode())
