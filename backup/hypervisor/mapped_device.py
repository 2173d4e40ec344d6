"""Block devices of the kernel's RBD driver, and the images behind them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import BackupError, reason
from ..model import Image, image_named

# What is mapped, a directory for each (Linux, Documentation/ABI/testing/sysfs-bus-rbd).
DEVICES = Path("/sys/bus/rbd/devices")
# Links to the devices, which udev names by ceph-rbdnamer: POOL/IMAGE, POOL/NAMESPACE/IMAGE, and @SNAPSHOT.
LINKS = "/dev/rbd/"


@dataclass(frozen=True)
class MappedImage:
    """What a device shows. `fsid`, the cluster's, is "" where nothing is mapped that would tell it."""

    image: Image
    snapshot: str = ""
    fsid: str = ""


def mapped_image(path: str, local: bool, devices: Path = DEVICES) -> MappedImage | None:
    """Tell what is behind a block device, None if it is not the RBD driver's.

    A device that is not mapped, or, without `local`, another node's, is known by its link's name alone.
    Raises BackupError for an RBD device that can't be told or is only a part of an image.
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
        raise BackupError(f"nothing tells which image is mapped as /dev/rbd{device.name}")
    snapshot = _read(device / "current_snap")
    if not _read(device / "pool") or not _read(device / "name"):
        raise BackupError(f"nothing tells which image is mapped as /dev/rbd{device.name}")
    image = Image(
        _read(device / "pool"), _read(device / "name"), _read(device / "pool_ns"), _read(device / "image_id")
    )
    return MappedImage(image, "" if snapshot == "-" else snapshot, _read(device / "cluster_fsid"))


def _linked(path: str) -> MappedImage:
    name, _, snapshot = path[len(LINKS) :].partition("@")
    image = image_named(name)
    if image is None:
        raise BackupError(f"{path} names no image")
    return MappedImage(image, snapshot)


def _read(attribute: Path) -> str:
    """Give an attribute, "" where the kernel does not have it yet (pool_ns came with Linux 4.19)."""
    try:
        return attribute.read_text().rstrip("\n")
    except FileNotFoundError:
        return ""
    except OSError as error:  # it is being unmapped
        raise BackupError(f"cannot read {attribute}: {reason(error)}") from error
