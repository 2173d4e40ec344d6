"""Files that are there as a whole or not at all: whoever reads them never sees half of one."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

DRAFT_AGE = 600.0  # seconds after which nobody can still be writing a draft


def write_whole(path: Path, content: bytes, mode: int = 0o600, durable: bool = True) -> None:
    """Put a file in the place of what is there. Raises OSError, and has then changed nothing.

    `durable`: it is there after a power cut too.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
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

    Those of `age` seconds and more (DRAFT_AGE), as others may be written just now. Drafts stand beside their
    files, as .NAME.xxxxxxxx; one that can't be removed harms nobody.
    """
    draft = re.compile(rf"\.(?:{names})\.[a-z0-9_]{{8}}")
    with suppress(OSError):
        for name in os.listdir(directory):
            if draft.fullmatch(name):
                _remove_if_old(directory / name, DRAFT_AGE if age is None else age)


def _remove_if_old(path: Path, age: float) -> None:
    with suppress(OSError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_mtime < time.time() - age:
            path.unlink()
