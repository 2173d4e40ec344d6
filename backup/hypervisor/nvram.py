"""Reads a domain's NVRAM: firmware variables, without which a UEFI guest may not find its boot loader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

from ..errors import BackupError, reason
from ..model import State
from .qcow2 import may_lack_data


def read_nvram(path: str, state: State, read: Callable[[str], bytes]) -> bytes:
    """Return the file's content, b"" for a domain that has no NVRAM or never ran.

    `read` raises OSError. Raises BackupError if the file cannot be read.
    """
    if not path:
        return b""
    try:
        return read(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not state.active:
            return b""
        message = f"cannot read the domain's NVRAM {path}: {reason(error)}"
        raise BackupError(message, "without it the restored guest would not boot") from error


def first_nvram(paths: Sequence[str], read: Callable[[str], bytes]) -> tuple[str, bytes]:
    """Return the first of these files that exists, and its content; ("", b"") for a domain that never ran.

    `read` raises OSError. Raises BackupError if one cannot be read.
    """
    for path in paths:
        if content := read_nvram(path, State.SHUT_OFF, read):
            return path, content
    return "", b""


def require_written(path: str, nvram: bytes) -> None:
    """Raise BackupError if QEMU has changes of the running guest's NVRAM that it has not written yet."""
    if may_lack_data(nvram):
        message = f"the NVRAM {path} (qcow2) has changes that QEMU has not written yet"
        hint = (
            'a pause writes them: <backup freeze="never"/> in the domain\'s metadata; or let it use raw NVRAM'
        )
        raise BackupError(message, hint)
