"""The names of directories and files in the repository.

UUID/RUN/vda.qcow2 (or vda.raw) has a disk, UUID/RUN/definition.tar the manifest: with it the restore point
counts. RUN is RUN.ATTEMPT after a retry. UUID/.RUN.partial/ is what becomes UUID/RUN/ when it is complete.
"""

from __future__ import annotations

import re
from typing import Optional

from backup.errors import BackupError

MANIFEST = "definition.tar"
ENTRY = "point.json"  # what restore-points lists
LOCK = ".lock"
QCOW2, RAW = "qcow2", "raw"

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PARTIAL = re.compile(r"\.(?P<point>.+)\.partial")


def is_uuid(name: str) -> bool:
    return _UUID.fullmatch(name) is not None


def partial_name(point: str) -> str:
    return f".{point}.partial"


def of_partial(name: str) -> Optional[str]:
    """Return the name of the restore point that a directory is to become, None if it is another one."""
    found = _PARTIAL.fullmatch(name)
    return found["point"] if found else None


def file_name(target: str, kind: str) -> str:
    """Return the name of a disk's file: in file names there is no /."""
    return f"{target.replace('/', '_')}.{kind}"


def target_of(file: str) -> Optional[str]:
    """Return the target of the disk that a file has, None if it is another file."""
    target, _, kind = file.rpartition(".")
    return target if kind in (QCOW2, RAW) and target and not file.startswith(".") else None


def restore_id(uuid: str, point: str, file: str) -> str:
    """Return the id of a saved image: its path below the directory."""
    return f"{uuid}/{point}/{file}"


def split_id(identifier: str) -> tuple[str, str, str]:
    """Return the UUID, the name of the restore point and the file of a saved image's id.

    Raises BackupError if it does not name a file below the directory: manifests may be forged.
    """
    parts = identifier.split("/")
    if len(parts) == 3 and is_uuid(parts[0]) and not parts[1].startswith(".") and target_of(parts[2]):
        return parts[0], parts[1], parts[2]
    raise BackupError(f"{identifier} is no image of a restore point", "choose another restore point")
