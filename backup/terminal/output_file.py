"""Writes what a command makes into a file that the admin named."""

from __future__ import annotations

from pathlib import Path

from ..errors import BackupError, reason
from ..system.atomic_file import write_atomically
from .standard_output import print_text


def write_or_print(path: str, content: bytes) -> None:
    """Write a file that everybody may read; "-" is standard output. Raises BackupError."""
    if path == "-":
        print_text(content.decode())
        return
    try:
        write_atomically(Path(path), content, 0o644)
    except OSError as error:
        hint = "does its directory exist, and may you write to it? in a service, see ReadWritePaths="
        raise BackupError(f"cannot write {path}: {reason(error)}", hint) from error
