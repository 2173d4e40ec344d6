"""Finds the images behind block devices of the kernel's RBD driver."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from ..errors import BackupError, reason
from ..model import Image, image_named

# One directory per mapped device (Linux, Documentation/ABI/testing/sysfs-bus-rbd).
DEVICES = Path("/sys/bus/rbd/devices")
BLOCK_DEVICES = Path("/sys/block")
# Links that udev creates with ceph-rbdnamer: POOL/IMAGE or POOL/NAMESPACE/IMAGE, perhaps with @SNAPSHOT.
LINKS = "/dev/rbd/"


@dataclass(frozen=True)
class MappedImage:
    """The image that a device shows. `fsid`, the cluster's id, is "" if the device is not mapped.

    `device` is its path, `read_only` whether the kernel only reads from it, None if that is not known.
    """

    image: Image
    snapshot: str = ""
    fsid: str = ""
    device: str = field(default="", compare=False)
    read_only: Optional[bool] = field(default=None, compare=False)


def mapped_image(path: str, local: bool, devices: Path = DEVICES) -> MappedImage | None:
    """Return the image behind a block device, None if it is not an RBD device.

    A device that is not mapped, or (without `local`) on another node, is identified by its link's name only.
    Raises BackupError for an RBD device whose image cannot be found out, and for a partition.
    """
    device = os.path.realpath(path) if local else path
    found = re.fullmatch(r"/dev/rbd(\d+)(p\d+)?", device)
    if found:
        if found[2]:
            raise BackupError("a partition of an RBD image")
        return _mapped(devices / found[1], local)
    return _linked(path) if path.startswith(LINKS) else None


def _mapped(device: Path, local: bool) -> MappedImage:
    if not local or not device.is_dir():
        raise BackupError(f"cannot find out which image is mapped as /dev/rbd{device.name}")
    snapshot = _read(device / "current_snap")
    if not _read(device / "pool") or not _read(device / "name"):
        raise BackupError(f"cannot find out which image is mapped as /dev/rbd{device.name}")
    image = Image(
        _read(device / "pool"), _read(device / "name"), _read(device / "pool_ns"), _read(device / "image_id")
    )
    return MappedImage(
        image,
        "" if snapshot == "-" else snapshot,
        _read(device / "cluster_fsid"),
        f"/dev/rbd{device.name}",
        {"0": False, "1": True}.get(_read(BLOCK_DEVICES / f"rbd{device.name}" / "ro")),
    )


def _linked(path: str) -> MappedImage:
    name, _, snapshot = path[len(LINKS) :].partition("@")
    image = image_named(name)
    if image is None:
        raise BackupError(f"{path} contains no image name")
    return MappedImage(image, snapshot, device=path)


def _read(attribute: Path) -> str:
    """Return an attribute, "" if the kernel does not have it yet (pool_ns came with Linux 4.19)."""
    try:
        return attribute.read_text().rstrip("\n")
    except FileNotFoundError:
        return ""
    except OSError as error:  # it is being unmapped
        raise BackupError(f"cannot read {attribute}: {reason(error)}") from error
