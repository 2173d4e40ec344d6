"""Refuses images whose snapshots would not be usable backups, or cannot be made."""

from __future__ import annotations

from typing import Any

import rbd

from ..model import Image
from .errors import ClusterError
from .image_lock import is_mirror, require_unlocked

# The first bytes of a clone that was formatted with an encryption of its own (librbd, crypto/luks/Magic.cc).
CLONE_MAGIC = b"RBDL\xba\xbe"


def require_fit(image: Image, opened: Any) -> None:
    """Raise ClusterError if an open image cannot be backed up."""
    if opened.features() & rbd.RBD_FEATURE_MIGRATING:
        hint = f"after its execution: rbd migration commit {image}"
        raise ClusterError(f"image {image} is being migrated", hint)
    if is_mirror(opened):
        message = f"image {image} is a mirror that is not primary"
        raise ClusterError(message, "back it up where it is primary; see rbd mirror image status")
    if _is_formatted_clone(opened):
        message = (
            f"image {image} is a clone with an encryption of its own: "
            "a copy of it cannot be decrypted where it still shows its parent's data"
        )
        hint = f"with the passphrases of all its layers (see rbd flatten --help): rbd flatten {image}"
        raise ClusterError(message, hint)
    require_unlocked(image, opened)


def _is_formatted_clone(opened: Any) -> bool:
    """Return whether an open image is a clone with an encryption that is not its parent's."""
    try:
        opened.parent_info()
    except rbd.ImageNotFound:
        return False
    return bool(opened.read(0, min(opened.size(), len(CLONE_MAGIC))) == CLONE_MAGIC)
