"""Backing files: what a qcow2 file builds on, and what builds on it.

(https://www.qemu.org/docs/master/interop/qcow2.html)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from backup.errors import BackupError

from .domain_directory import DomainDirectory
from .errors import named_errors
from .names import QCOW2

MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQIIQ")  # magic, version, where the name of the backing file is, size of the disk
SUFFIX = f".{QCOW2}"


class Header(NamedTuple):
    """What a qcow2 file builds on, and the size of its disk in bytes."""

    backing: Optional[Path]
    size: int


def header(path: Path) -> Header:
    """Read the header of a qcow2 file. Raises BackupError."""
    with named_errors("read", path), path.open("rb") as file:
        start = file.read(HEADER.size)
        if len(start) < HEADER.size or start[:4] != MAGIC:
            raise BackupError(f"{path} is damaged: it has no qcow2 header", "qemu-img info")
        _, _, offset, length, _, size = HEADER.unpack(start)
        file.seek(offset)
        name = file.read(length).decode(errors="replace") if offset else ""
    return Header(beside(path, name) if name else None, size)


def backing_name(path: Path) -> str:
    """Return how a file in another directory of the domain names this one as its backing file."""
    return f"../{path.parent.name}/{path.name}"


def beside(path: Path, name: str) -> Path:
    """Return the file that `path` names so, if `backing_name` gave it that name."""
    parts = Path(name).parts[-2:]
    return path.parent.parent.joinpath(*parts)


def length(path: Path) -> int:
    """Return how many files it takes to read this one. Raises BackupError, also if one is missing."""
    found, above = 1, header(path).backing
    while above:
        found, above = found + 1, header(above).backing
    return found


def require_complete(path: Path) -> None:
    """Raise BackupError unless all files are there that it takes to read this one."""
    if path.suffix == SUFFIX:
        length(path)
    else:
        with named_errors("read", path):
            path.lstat()


def dependants(domain: DomainDirectory) -> dict[Path, list[Path]]:
    """Return what builds on each file of the domain, in complete directories and in others."""
    found: dict[Path, list[Path]] = {}
    for directory in _directories(domain):
        for path in domain.images(directory):
            if path.suffix == SUFFIX and (backing := _backing(path, domain)):
                found.setdefault(backing, []).append(path)
    return found


def _backing(path: Path, domain: DomainDirectory) -> Optional[Path]:
    """Return what a file builds on; one that has only been begun has no header yet."""
    try:
        return header(path).backing
    except BackupError:
        if path.parent in map(domain.partial, domain.partials()):
            return None
        raise


def _directories(domain: DomainDirectory) -> Sequence[Path]:
    return [*map(domain.final, domain.points()), *map(domain.partial, domain.partials())]
