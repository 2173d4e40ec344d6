"""The errors of the directory's file system, which may also hang."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, TypeVar

from backup.errors import BackupError, TransientError, reason
from backup.system.time_limit import CheckStop, within

Answer = TypeVar("Answer")

ANSWER_LIMIT = 60.0  # seconds for the file system to answer
# Of a file server that was restarted, or cannot be reached: a retry may succeed.
TRANSIENT = (errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOLCK)
MOUNTED = "is the file system of DIRECTORY_OUTPUT mounted, and its server up?"
FULL = (errno.ENOSPC, errno.EDQUOT)


class Unreadable(TransientError):
    """A file cannot be read: its medium is damaged, or, which a retry may find, its file server was away."""


def storage_error(action: str, path: Path, number: int, text: str) -> BackupError:
    """Return the error for an error number of the file system, and its text."""
    hint = "make room there, or keep fewer restore points (KEEP_LAST)" if number in FULL else MOUNTED
    kind = TransientError if number in TRANSIENT else BackupError
    if (action, number) == ("read", errno.EIO):
        kind = Unreadable
    return kind(f"cannot {action} {path}: {text}", hint)


@contextmanager
def named_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError into an error that an admin can act on."""
    try:
        yield
    except OSError as error:
        raise storage_error(action, path, error.errno or 0, reason(error)) from error


def answered(root: Path, ask: Callable[[], Answer], check_stop: CheckStop) -> Answer:
    """Return what the call returns. Raises what it raises, and TransientError if it hangs."""
    try:
        return within(ANSWER_LIMIT, ask, check_stop)
    except TimeoutError as error:
        raise TransientError(f"DIRECTORY_OUTPUT {root} does not answer: {error}", MOUNTED) from error
