"""Adds the layers below disks to a definition, as libvirt shows them only while the domain runs.

The header of a qcow2 image has the names of its original layers, wherever they are restored to.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from copy import deepcopy
from xml.etree.ElementTree import Element

from .disk_xml import attribute

PLACES = ("source", "source/host", "source/snapshot")  # what identifies the image of a disk


def with_layers(xml: str, live_xml: str) -> str:
    """Return the definition, with the layers that the running domain had below the same disks."""
    if not live_xml:
        return xml
    domain, added = ElementTree.fromstring(xml), False
    running = {attribute(disk, "target", "dev"): disk for disk in _disks(live_xml)}
    for disk in domain.findall("./devices/disk"):
        same = running.get(attribute(disk, "target", "dev"))
        below = None if same is None or _place(same) != _place(disk) else same.find("backingStore")
        if disk.find("backingStore") is None and below is not None and below.find("source") is not None:
            disk.append(_without_numbers(below))
            added = True
    return ElementTree.tostring(domain, encoding="unicode") if added else xml


def _disks(xml: str) -> list[Element]:
    return ElementTree.fromstring(xml).findall("./devices/disk")


def _place(disk: Element) -> tuple[object, ...]:
    places = [one for name in PLACES for one in disk.findall(name)]
    return (disk.get("type"), *(_attributes(one) for one in places))


def _attributes(element: Element) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in element.attrib.items() if name != "index"))


def _without_numbers(layer: Element) -> Element:
    """Return a copy without the numbers that libvirt gives to layers of a running domain."""
    copy = deepcopy(layer)
    for element in copy.iter():
        element.attrib.pop("index", None)
    return copy
