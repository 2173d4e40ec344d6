"""The names of images, snapshots and notes in an RBD repository.

virt-rbd-backup.UUID.vda has a disk, virt-rbd-backup.UUID.definition the manifest. Each restore point is one
snapshot of all of them, named RUN, or RUN.ATTEMPT after a retry; none begins with the prefix of the snapshots
that backups make in guests' images. Notes are metadata of the images: `rbd image-meta ls` shows them.
"""

from __future__ import annotations

import re
from typing import Optional

PREFIX = "virt-rbd-backup"
DEFINITION = "definition"

# Of a disk's image, while its data may differ from its last snapshot because of us: the run.
WRITING = "virt-rbd-backup.writing"
# Of a domain's definition image, before the name of each restore point's snapshot: what restore-points lists.
POINT = "virt-rbd-backup.point."

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_DEFINITION = re.compile(rf"{re.escape(PREFIX)}\.(?P<uuid>{_UUID})\.{DEFINITION}")


def disk_name(uuid: str, target: str) -> str:
    """Return the name of a disk's image: in RBD's names there is no / or @."""
    return f"{PREFIX}.{uuid}.{re.sub('[/@]', '_', target)}"


def definition_name(uuid: str) -> str:
    return f"{PREFIX}.{uuid}.{DEFINITION}"


def defined_uuid(name: str) -> Optional[str]:
    """Return the UUID of the domain whose definition image this is, None if it is another image."""
    found = _DEFINITION.fullmatch(name)
    return found["uuid"] if found else None


def restore_id(name: str, snapshot: str) -> str:
    """Return the id of a saved image: what `rbd export` takes, without the pool."""
    return f"{name}@{snapshot}"


def split_id(identifier: str) -> tuple[str, str]:
    """Return the image and the snapshot of a saved image's id."""
    name, _, snapshot = identifier.partition("@")
    return name, snapshot


def uuid_of(name: str) -> str:
    """Return the UUID of the domain that an image of the repository belongs to."""
    return name[len(PREFIX) + 1 :].partition(".")[0]
