"""Reads one file of the node, with its mode and owner: never more than a limit, and nothing but a file."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from contextlib import suppress

from ..errors import BackupError
from ..model import NodeFile
from ..text import size_text

# an open must not wait for the other end of a pipe, nor take over a terminal
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def read_file(
    use: str, path: str, limit: int, directory: int | None = None, limit_name: str = ""
) -> NodeFile:
    """Read a regular file of `limit` bytes at most. Raises OSError, and BackupError if it is none.

    `directory`: a descriptor of the file's directory, which a program that may be hostile can write to: no
    symbolic link is followed then. `limit_name`: the constant that sets the limit, for the message.
    """
    name, flags = (path, FLAGS) if directory is None else (os.path.basename(path), FLAGS | os.O_NOFOLLOW)
    with open(os.open(name, flags, dir_fd=directory), "rb") as file:
        status = os.fstat(file.fileno())
        require_saveable(status, limit, limit_name)
        content = file.read(limit + 1)
        _require_size(len(content), limit, limit_name)  # it may have grown
        return NodeFile(use, path, content, stat.S_IMODE(status.st_mode) & 0o777, _owner(status))


def require_saveable(status: os.stat_result, limit: int, limit_name: str = "") -> None:
    """Raise BackupError if this is not a regular file of `limit` bytes at most."""
    if not stat.S_ISREG(status.st_mode):
        raise BackupError("not a regular file")
    _require_size(status.st_size, limit, limit_name)


def _require_size(size: int, limit: int, limit_name: str) -> None:
    if size > limit:
        text = f"{size_text(size)}, larger than {size_text(limit)}"
        raise BackupError(f"{text} ({limit_name})" if limit_name else text)


def _owner(status: os.stat_result) -> str:
    user, group = str(status.st_uid), str(status.st_gid)
    with suppress(KeyError):
        user = pwd.getpwuid(status.st_uid).pw_name
    with suppress(KeyError):
        group = grp.getgrgid(status.st_gid).gr_name
    return f"{user}:{group}"
