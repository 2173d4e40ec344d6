"""A saved domain's XML, changed so that libvirt can have it again with its restored images.

(https://libvirt.org/formatdomain.html)
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from .copied_xml import isolate, part_from_the_other
from .errors import BackupError
from .model import Image


@dataclass(frozen=True)
class Redefinition:
    """What becomes of a saved domain.

    `images` are the restored ones, by their disks' target names. `monitors` are the hosts, (address, port),
    of the cluster that they are in. A `copy` may run beside the domain that was saved; one that is `isolated`
    has nothing at all that reaches beyond it.
    """

    name: str
    uuid: str
    copy: bool
    images: Mapping[str, Image]
    monitors: Sequence[tuple[str, str]]
    isolated: bool = False


def redefined(xml: str, change: Redefinition) -> tuple[str, Sequence[str]]:
    """Give the XML, and what was left out of it.

    A copy has no part in disks that were not restored, nor in anything else that is another's. Raises
    BackupError for a disk that can't be pointed at its restored image.
    """
    domain = ElementTree.fromstring(xml)
    _text_of(domain, "name", change.name)
    _text_of(domain, "uuid", change.uuid)
    for entry in domain.findall("./sysinfo/system/entry[@name='uuid']"):  # has to be the domain's
        entry.text = change.uuid
    for genid in domain.findall("genid"):  # tells the guest that it went back in time
        genid.text = None
    devices = domain.find("devices")
    assert devices is not None, "libvirt always writes it"
    left_out = []
    for disk in devices.findall("disk"):
        if not _pointed(disk, change) and change.copy and disk.get("device") != "cdrom":
            devices.remove(disk)
            left_out.append(f"{_target(disk)}, which was not restored")
    if change.copy:
        left_out += part_from_the_other(domain, devices, change.name)
    if change.isolated:
        isolate(domain, devices)
    return ElementTree.tostring(domain, encoding="unicode"), left_out


def _pointed(disk: Element, change: Redefinition) -> bool:
    """Point a disk and the layers below it at what was restored of them; tell whether that is all of it."""
    targets = [
        (_target(disk) + (f".backing{n}" if n else ""), layer) for n, layer in enumerate(_layers(disk))
    ]
    for target, layer in targets:
        if target in change.images:
            _point(layer, target, change.images[target], change)
    return all(target in change.images for target, _ in targets)


def _layers(disk: Element) -> Iterator[Element]:
    layer: Element | None = disk
    while layer is not None and layer.find("source") is not None:
        yield layer
        layer = layer.find("backingStore")


def _point(layer: Element, target: str, image: Image, change: Redefinition) -> None:
    source, kind = layer.find("source"), layer.get("type")
    assert source is not None, "it had an image"
    if kind == "network":
        source.set("name", str(image))
        _lead_to(source, change.monitors)
    elif kind == "volume":
        source.set("volume", image.name)
    elif source.get("dev") != f"/dev/rbd/{image}":
        message = f"{target} is the kernel's device {source.get('dev')}, which can't lead to {image}"
        hint = f"restore without --define; then rbd map {image}, and virsh define the manifest's domain.xml"
        raise BackupError(message, hint)


def _lead_to(source: Element, monitors: Sequence[tuple[str, str]]) -> None:
    """Name the cluster's monitors, unless one that is named is one of them."""
    hosts = source.findall("host")
    if not hosts or {host.get("name") for host in hosts} & {address for address, _ in monitors}:
        return
    for host in hosts:
        source.remove(host)
    for address, port in monitors:
        source.insert(0, Element("host", {"name": address, "port": port}))


def _target(disk: Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def _text_of(domain: Element, child: str, text: str) -> None:
    element = domain.find(child)
    assert element is not None, "libvirt always writes it"
    element.text = text
