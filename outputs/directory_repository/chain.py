"""Backing files: what a qcow2 file builds on, and what builds on it.

(https://www.qemu.org/docs/master/interop/qcow2.html)
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from backup.errors import BackupError

from .domain_directory import DomainDirectory
from .errors import named_errors
from .names import QCOW2

MAGIC = b"QFI\xfb"
# Magic, version, where the name of the backing file is, size of the disk; incompatible features (version 3).
HEADER, FEATURES = struct.Struct(">4sIQIIQ40x"), struct.Struct(">Q")
EXTERNAL_DATA = 4  # a feature: the data is in another file, which the header names
SUFFIX = f".{QCOW2}"
LONGEST = 1000  # files that build on each other; DIRECTORY_CHAIN is 200 at the most


class Header(NamedTuple):
    """What a qcow2 file builds on, and the size of its disk in bytes."""

    backing: Optional[Path]
    size: int


def header(path: Path) -> Header:
    """Read the header of a qcow2 file.

    Raises BackupError, also if it names a file that is not one of the domain's: whoever can write to the
    directory must not have QEMU read any file of this node.
    """
    _require_file(path)
    with named_errors("read", path), path.open("rb") as file:
        start = file.read(HEADER.size + FEATURES.size)
        if len(start) < HEADER.size + FEATURES.size or start[:4] != MAGIC:
            raise BackupError(f"{path} is damaged: it has no qcow2 header", f"qemu-img info {path}")
        _, version, offset, length, _, size = HEADER.unpack(start[: HEADER.size])
        if version > 2 and FEATURES.unpack(start[HEADER.size :])[0] & EXTERNAL_DATA:
            raise BackupError(f"{path} has its data in another file", f"qemu-img info {path}")
        file.seek(offset)
        name = file.read(length).decode(errors="replace") if offset else ""
    return Header(_beside(path, name) if name else None, size)


def backing_name(path: Path) -> str:
    """Return how a file in another directory of the domain names this one as its backing file."""
    return f"../{path.parent.name}/{path.name}"


def _beside(path: Path, name: str) -> Path:
    """Return the file that `path` names so. Raises BackupError unless `backing_name` gave it that name."""
    found = path.parent.parent.joinpath(*Path(name).parts[-2:])
    if name != backing_name(found) or found.parent.name in ("..", "."):
        raise BackupError(f"{path} builds on {name}, which is no restore point", f"qemu-img info {path}")
    return found


def _require_file(path: Path) -> None:
    """Raise BackupError unless it is a file, and no link to one elsewhere."""
    with named_errors("read", path):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BackupError(f"{path} is no regular file", f"ls -l {path}")


def length(path: Path) -> int:
    """Return how many files it takes to read this one. Raises BackupError, also if one is missing."""
    found, above = 1, header(path).backing
    while above:
        found, above = found + 1, header(above).backing
        if found > LONGEST:
            raise BackupError(f"{path} builds on itself", f"qemu-img info {path}")
    return found


def require_complete(path: Path) -> None:
    """Raise BackupError unless all files are there that it takes to read this one."""
    if path.suffix == SUFFIX:
        length(path)
    else:
        _require_file(path)


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
