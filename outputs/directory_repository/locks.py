"""The lock of a domain's directory: shared while it is saved or read, exclusive while something is removed.

It works between nodes where the file system's locks do: NFS 4, CephFS (man 2 flock).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Optional

from backup.errors import TransientError

from ..own_points.in_use import PointInUse
from .domain_directory import DomainDirectory
from .errors import named_errors
from .names import LOCK

POLL = 0.2  # seconds
# On a file system that can only be read from nothing is removed either.
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def shared(domain: DomainDirectory, limit: float, alive: Callable[[], None]) -> Iterator[None]:
    """Keep what is in the directory from being removed during the block; the directory exists.

    Waits up to `limit` seconds while something is removed; `alive` is called meanwhile, and may raise the
    reason to stop. Raises BackupError.
    """
    deadline = time.monotonic() + limit
    while (descriptor := _locked(domain.path / LOCK, fcntl.LOCK_SH)) is None:
        alive()
        if time.monotonic() > deadline:
            message = f"{domain.path} is locked: for {limit:.0f} s another command has been removing from it"
            raise TransientError(message, "LOCK_WAIT limits the wait; see `fuser -v` on that node")
        time.sleep(POLL)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(domain: DomainDirectory) -> Iterator[Path]:
    """Have the directory alone during the block; gives the lock's path. Raises PointInUse, BackupError."""
    descriptor = _locked(path := domain.path / LOCK, fcntl.LOCK_EX)
    if descriptor is None:
        message = f"{domain.path} is in use: a restore point is saved, read or mounted"
        raise PointInUse(message, f"see `fuser -v {path}` on the nodes that use it")
    try:
        yield path
    finally:
        os.close(descriptor)


def _locked(path: Path, kind: int) -> Optional[int]:
    """Return the lock's descriptor, None if it is held by others."""
    with named_errors("lock", path):
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):  # or it was removed since we opened it
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    return None


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
