"""The XML of a domain whose disks are overlays, in RBD images, over what a server on this node has.

So a guest runs while its images are restored; then each overlay is copied into its image, below the guest.
(https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms)
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from copy import deepcopy
from xml.etree.ElementTree import Element, SubElement

from ..errors import BackupError, ConfigError
from ..model import Image, image_named
from .copy_xml import remove
from .disk_xml import attribute, shown

# A lost server pauses the guest. Clusters that the guest discards are zeros in the overlay, which the copy
# would write in full if it did not detect them.
DRIVER = {
    "name": "qemu",
    "type": "qcow2",
    "discard": "unmap",
    "detect_zeroes": "unmap",
    "error_policy": "stop",
    "rerror_policy": "stop",
}
UNPLUGGED = ("hostdev", "vdpa", "vhostuser")  # interfaces whose link the hypervisor cannot set
SECTOR = 512  # bytes
HINT = "restore it without --instant"


def require_movable(xml: str, images: Mapping[str, Image]) -> None:
    """Raise ConfigError unless each of these images, by their targets, can be below an overlay.

    `xml` is the definition with the restored images, which it has to name.
    """
    domain = ElementTree.fromstring(xml)
    problems = []
    for target, image in images.items():
        disk = _disk(domain, target)
        if problem := _problem(disk, image):
            problems.append(BackupError(f"{target} ({image}) {problem}", HINT))
    names = [attribute(disk, "source", "name") for disk in domain.iterfind("./devices/disk")]
    for target, image in images.items():
        if names.count(str(image)) > 1:
            problems.append(BackupError(f"{target} ({image}) is the image of several disks", HINT))
    if not images:
        problems.append(BackupError("the restore point has no image of a disk in its definition", HINT))
    if problems:
        raise ConfigError(problems)


def on_overlays(xml: str, exports: Mapping[str, str], socket: str) -> str:
    """Return the definition with overlays as the disks of these targets, each over its export.

    `socket` is the path of the server that has the exports.
    """
    domain = ElementTree.fromstring(xml)
    for target, export in exports.items():
        disk = _disk(domain, target)
        assert disk is not None, "it can be below an overlay"
        driver = disk.find("driver")
        driver = SubElement(disk, "driver") if driver is None else driver
        if driver.get("cache") == "unsafe":  # what the guest flushes has to survive QEMU's end
            driver.set("cache", "writeback")
        driver.attrib.pop("copy_on_read", None)
        driver.attrib.update(DRIVER)
        source = disk.find("source")
        assert source is not None, "it has an image"
        image = image_named(source.get("name", ""))
        assert image is not None, "it is the restored one"
        source.set("name", str(image.overlay))
        remove(disk, "backingStore", "mirror")
        disk.append(_backing(export, socket))
    return ElementTree.tostring(domain, encoding="unicode")


def destination(xml: str, target: str) -> str:
    """Return the <disk> that an overlay is copied into: that of this target in the definition."""
    found = _disk(ElementTree.fromstring(xml), target)
    assert found is not None, "it can be below an overlay"
    disk = deepcopy(found)
    driver = disk.find("driver")
    driver = SubElement(disk, "driver", {"name": "qemu", "type": "raw"}) if driver is None else driver
    driver.set("discard", "unmap")
    return ElementTree.tostring(disk, encoding="unicode")


def unplugged(xml: str) -> tuple[str, Sequence[str]]:
    """Return the definition with the links of its network interfaces down, and the interfaces left out."""
    domain = ElementTree.fromstring(xml)
    devices = domain.find("devices")
    assert devices is not None, "libvirt always writes it"
    left_out = []
    for interface in devices.findall("interface"):
        if interface.get("type") in UNPLUGGED:
            devices.remove(interface)
            address = attribute(interface, "mac", "address")
            left_out.append(f"its {interface.get('type')} network interface {address}".rstrip())
            continue
        remove(interface, "link")
        SubElement(interface, "link", {"state": "down"})
    return ElementTree.tostring(domain, encoding="unicode"), left_out


def _disk(domain: Element, target: str) -> Element | None:
    disks = domain.iterfind("./devices/disk")
    return next((disk for disk in disks if attribute(disk, "target", "dev") == target), None)


def _problem(disk: Element | None, image: Image) -> str:
    """Return what keeps a disk from being an overlay, "" for nothing."""
    if disk is None:
        return "is no disk of its own, but a layer of one, or NVRAM"
    problems = {
        "is encrypted by its host, and so is what the restore point has of it": (
            disk.find("encryption") is not None or disk.find("source/encryption") is not None
        ),
        "is no disk that QEMU opens by itself, but a device of the node": (
            (disk.get("type"), attribute(disk, "source", "protocol"), shown(disk))
            != ("network", "rbd", str(image))
        ),
        f"is a {disk.get('device')}": disk.get("device", "disk") != "disk",
        "has a backing chain": disk.find("backingStore/source") is not None,
        "has a format of its own": attribute(disk, "driver", "type") not in ("", "raw"),
        "is shared with other domains": disk.find("shareable") is not None,
        "is read-only": disk.find("readonly") is not None,
    }
    return next((problem for problem, found in problems.items() if found), "")


def _backing(export: str, socket: str) -> Element:
    """Return the <backingStore> with the export; an empty one ends it, so that no header is asked."""
    store = Element("backingStore", {"type": "network"})
    SubElement(store, "format", {"type": "raw"})
    source = SubElement(store, "source", {"protocol": "nbd", "name": export})
    SubElement(source, "host", {"transport": "unix", "socket": socket})
    SubElement(store, "backingStore")
    return store
