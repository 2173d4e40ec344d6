"""Checks that images with qcow2 inside need no layer that only their headers name: it would not be saved."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BackupError
from ..hypervisor.qcow2 import HEADER_SIZE, needed_file
from .snapshots import DiskSnapshot


def require_known_layers(snapshots: Sequence[DiskSnapshot]) -> None:
    """Raise BackupError if a snapshot's image is an overlay of what the domain's definition does not have.

    Of each such image it reads one header; what that names is not shown, as it may have a key in it.
    """
    for snapshot in snapshots:
        if snapshot.disk.needs_header and (needed := _needed(snapshot)):
            message = f"{snapshot.disk} cannot be backed up: its qcow2 header names {needed}"
            hint = (
                "its definition does not have it: add it (<backingStore>, <dataStore>), see "
                f"`qemu-img info rbd:{snapshot.image}`; to exclude the disk: "
                f'<backup exclude="{snapshot.disk.target}"/> in the domain\'s metadata'
            )
            raise BackupError(message, hint)


def _needed(snapshot: DiskSnapshot) -> str:
    with snapshot.open() as reader:
        return needed_file(reader.start_read(0, min(HEADER_SIZE, reader.size))()) if reader.size else ""
