"""Files that are written atomically: a reader never sees half of one."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Union

from .process_group import ProcessId, is_running, pid_namespace, process_id, sees_own_pids

DRAFT_AGE = 600.0  # seconds after which a draft of an unknown writer counts as abandoned
# The shortest name: what follows it is the writer, if it can be.
_DRAFT = re.compile(r"\.(?P<name>.+?)\.(?:(?P<writer>\d+-\d+-\d+)\.)?[a-z0-9_]{8}")


def write_atomically(
    path: Path, content: Union[bytes, Iterable[bytes]], mode: int = 0o600, durable: bool = True
) -> None:
    """Create or replace a file. Raises OSError, and has then changed nothing.

    `content` is its bytes, or parts of them that are too many for memory together. `durable`: the file
    survives a power cut.
    """
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.{_writer()}", delete=False
    ) as file:
        try:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
            os.replace(file.name, path)
        except BaseException:  # including Ctrl-C: no draft stays
            os.unlink(file.name)
            raise


def remove_drafts(directory: Path, names: str, age: float | None = None) -> None:
    """Remove the drafts that killed writers left of files whose names match the regular expression.

    A draft is removed if its writer is dead; if that is unknown, when it is `age` seconds old (DRAFT_AGE).
    Drafts are beside their files, named .NAME.WRITER.xxxxxxxx. A draft that cannot be removed does no harm.
    """
    with suppress(OSError):
        for name in os.listdir(directory):
            found = _DRAFT.fullmatch(name)
            if found and re.fullmatch(names, found["name"]):
                _remove_if_abandoned(directory / name, found["writer"], DRAFT_AGE if age is None else age)


def _remove_if_abandoned(path: Path, writer: str | None, age: float) -> None:
    alive = _is_alive(*map(int, writer.split("-"))) if writer else None
    if alive is not True:
        _remove_if_old(path, age if alive is None else 0)


def _writer() -> str:
    """Return the part of a draft's name that identifies this process; "" if /proc does not show it."""
    try:
        this = process_id(os.getpid())
        return f"{pid_namespace()}-{this.pid}-{this.began}." if sees_own_pids() else ""
    except OSError:
        return ""


def _is_alive(namespace: int, pid: int, began: int) -> bool | None:
    """Return whether a draft's writer runs, None if that is unknown here."""
    if namespace != pid_namespace() or not sees_own_pids():
        return None
    return is_running(ProcessId(pid, began))


def _remove_if_old(path: Path, age: float) -> None:
    with suppress(OSError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_mtime < time.time() - age:
            path.unlink()
