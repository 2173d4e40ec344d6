"""Files that are there as a whole or not at all: whoever reads them never sees half of one."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from .process_group import Life, life_of, lives, numbers_are_ours, pid_namespace

DRAFT_AGE = 600.0  # seconds after which a draft whose writer is not known counts as abandoned


def write_whole(path: Path, content: bytes, mode: int = 0o600, durable: bool = True) -> None:
    """Put a file in the place of what is there. Raises OSError, and has then changed nothing.

    `durable`: it is there after a power cut too.
    """
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.{_writer()}", delete=False
    ) as file:
        try:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
            os.replace(file.name, path)
        except BaseException:  # of any kind, Ctrl-C included: no draft stays
            os.unlink(file.name)
            raise


def remove_drafts(directory: Path, names: str, age: float | None = None) -> None:
    """Remove the drafts that killed writers left of files with such names, a regular expression.

    Those whose writer is dead; where that can't be known, those of `age` seconds and more (DRAFT_AGE). Drafts
    lie beside their files, as .NAME.WRITER.xxxxxxxx; one that can't be removed harms nobody.
    """
    draft = re.compile(rf"\.(?:{names})\.(?:(\d+)-(\d+)-(\d+)\.)?[a-z0-9_]{{8}}")
    with suppress(OSError):
        for name in os.listdir(directory):
            if found := draft.fullmatch(name):
                alive = _is_alive(*map(int, found.groups())) if found[1] else None
                limit = DRAFT_AGE if age is None else age
                if alive is not True:
                    _remove_if_old(directory / name, limit if alive is None else 0)


def _writer() -> str:
    """Name this process in a draft's name: PID namespace, PID, start; "" where it can't know itself."""
    try:
        life = life_of(os.getpid())
        return f"{pid_namespace()}-{life.pid}-{life.began}." if numbers_are_ours() else ""
    except OSError:
        return ""


def _is_alive(namespace: int, pid: int, began: int) -> bool | None:
    """Return whether a draft's writer runs, None where that can't be known from here."""
    if namespace != pid_namespace() or not numbers_are_ours():
        return None
    return lives(Life(pid, began))


def _remove_if_old(path: Path, age: float) -> None:
    with suppress(OSError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_mtime < time.time() - age:
            path.unlink()
