"""Lets a copy's disks be overlays, in files of its own, over what a network block device server has.

(https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms)
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from ..command import COMMAND
from ..errors import NotDrillable
from .disk_xml import NVRAM_TARGET, attribute

# A failed read or write pauses the guest; a flush need not reach the node's disk, as nothing outlives it.
DRIVER = {
    "name": "qemu",
    "type": "qcow2",
    "cache": "unsafe",
    "error_policy": "stop",
    "rerror_policy": "stop",
}
KINDS = ("raw", "qcow2")
# What a disk cannot have any more; sgio and rawio are attributes.
REMOVED = ("source", "backingStore", "mirror", "auth", "encryption", "shareable", "transient")


@dataclass(frozen=True)
class Export:
    """A saved image that a server on this node has, under this name, on a socket at this path.

    In `directory` are the overlays.
    """

    name: str
    socket: str
    directory: str


@dataclass(frozen=True)
class Overlay:
    """An empty overlay, which has to be made at this path, over the export of this name and format."""

    path: str
    export: str
    kind: str


def lay_over(disk: Element, layers: Sequence[Element], exports: Sequence[Export]) -> None:
    """Let a disk be an overlay over the exports of its layers, from the top one down.

    Raises NotDrillable if one is encrypted, as its restore point has it encrypted too, or of another format.
    """
    target, top = attribute(disk, "target", "dev"), exports[0]
    for layer in layers:
        if layer.find("encryption") is not None or layer.find("source/encryption") is not None:
            message = f"{target} is encrypted by its host, and so is what the restore point has of it"
            raise NotDrillable(message, f"restore it: DRILL_POOL, and {COMMAND} drill --boot")
        if (kind := _kind(layer)) not in KINDS:
            message = f"{target} has the format {kind}, which may refer to other files of this node"
            raise NotDrillable(message, f"restore it: DRILL_POOL, and {COMMAND} drill --boot")
    below = _backing(list(zip(layers, exports)))
    for name in REMOVED:
        for child in disk.findall(name):
            disk.remove(child)
    for name in ("sgio", "rawio"):
        disk.attrib.pop(name, None)
    if disk.get("device") == "lun":  # only a device of the host is one
        disk.set("device", "disk")
    disk.set("type", "file")
    driver = disk.find("driver")
    driver = SubElement(disk, "driver") if driver is None else driver
    for name in ("io", "copy_on_read"):  # io=native excludes the cache; what is read need not be copied
        driver.attrib.pop(name, None)
    driver.attrib.update(DRIVER)
    SubElement(disk, "source", {"file": f"{top.directory}/{target.replace('/', '_')}.qcow2"})
    disk.append(below)


def copy_nvram(nvram: Element, export: Export) -> None:
    """Let the domain have a copy of an export as its NVRAM, which has to be made in the directory."""
    for child in list(nvram):
        if child.tag != "format":
            nvram.remove(child)
    nvram.set("type", "file")
    SubElement(nvram, "source", {"file": f"{export.directory}/{NVRAM_TARGET}.fd"})


def overlays(xml: str) -> Sequence[Overlay]:
    """Return the overlays that the domain's disks are."""
    found = []
    for disk in ElementTree.fromstring(xml).iterfind("./devices/disk[@type='file']"):
        export = attribute(disk, "backingStore/source", "name")
        if export and attribute(disk, "backingStore/source", "protocol") == "nbd":
            kind = attribute(disk, "backingStore/format", "type")
            found.append(Overlay(attribute(disk, "source", "file"), export, kind))
    return found


def qcow2_exports(xml: str) -> Collection[str]:
    """Return the names of the exports that are qcow2 images, of all layers."""
    domain = ElementTree.fromstring(xml)
    found = {
        attribute(layer, "source", "name")
        for layer in domain.iterfind("./devices/disk//backingStore")
        if attribute(layer, "format", "type") == "qcow2"
    }
    return found | {NVRAM_TARGET for _ in domain.iterfind("./os/nvram/format[@type='qcow2']")}


def _backing(layers: Sequence[tuple[Element, Export]]) -> Element:
    """Return the <backingStore> with these layers; an empty one ends it, so that no header is asked."""
    if not layers:
        return Element("backingStore")
    layer, export = layers[0]
    store = Element("backingStore", {"type": "network"})
    SubElement(store, "format", {"type": _kind(layer)})
    source = SubElement(store, "source", {"protocol": "nbd", "name": export.name})
    SubElement(source, "host", {"transport": "unix", "socket": export.socket})
    store.append(_backing(layers[1:]))
    return store


def _kind(layer: Element) -> str:
    return attribute(layer, "driver", "type") or attribute(layer, "format", "type") or "raw"
