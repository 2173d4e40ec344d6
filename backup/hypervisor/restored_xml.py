"""Changes a saved domain's XML so that libvirt can define it with its restored images.

(https://libvirt.org/formatdomain.html)
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TypeVar
from xml.etree.ElementTree import Element

from ..errors import BackupError
from ..model import Image
from .copy_xml import eject, isolate, remove, separate, tpm_beside
from .disk_xml import IMAGE_TYPES, NVRAM_TARGET, REMOVABLE
from .overlay_xml import Export, copy_nvram, lay_over
from .shared_devices import without_shared

# Where monitors speak msgr2. They are only given with this port if they do not speak the old protocol.
MESSENGER_V2_PORT = "3300"
NOT_RESTORED = "which was not restored"

Restored = TypeVar("Restored", Image, Export)


@dataclass(frozen=True)
class Redefinition:
    """The changes to a saved domain.

    `images` are the restored images by their disks' targets. `monitors` are the (address, port) pairs of
    their cluster. A `copy` can run beside the original domain; an `isolated` one has no outside access.
    `exports`, in place of images, are what a copy's disks become overlays over, by the same targets.
    """

    name: str
    uuid: str
    copy: bool
    images: Mapping[str, Image]
    monitors: Sequence[tuple[str, str]]
    isolated: bool = False
    exports: Mapping[str, Export] = field(default_factory=dict)


def redefined(xml: str, change: Redefinition) -> tuple[str, Sequence[str]]:
    """Return the XML, and what was left out of it.

    A copy loses disks and media that were not restored, and everything that belongs to the original. Raises
    BackupError for a disk that cannot refer to its restored image.
    """
    domain = ElementTree.fromstring(xml)
    if change.copy:
        _separate_tpm(domain, change)
    _text_of(domain, "name", change.name)
    _text_of(domain, "uuid", change.uuid)
    for entry in domain.findall("./sysinfo/system/entry[@name='uuid']"):  # must equal the domain's UUID
        entry.text = change.uuid
    for genid in domain.findall("genid"):  # a new one informs the guest that it went back in time
        genid.text = None
    devices = domain.find("devices")
    assert devices is not None, "libvirt always writes it"
    change = replace(
        change,
        images=_with_sharers(devices, change.images),
        exports=_with_sharers(devices, change.exports),
    )
    left_out = []
    for disk in devices.findall("disk"):
        if _pointed(disk, change) or not change.copy:
            continue
        if disk.get("device") in REMOVABLE:
            medium = f"the medium {eject(disk)} of {disk.get('device')} {_target(disk)}"
            left_out.append(f"{medium}, which starts empty")
        else:
            devices.remove(disk)
            left_out.append(f"{_target(disk)}, {NOT_RESTORED}")
    left_out += _nvram_pointed(domain, change)
    if change.copy:
        left_out += without_shared(devices)
    if change.isolated:
        isolate(domain, devices)
    if change.copy:
        left_out += separate(domain, devices, change.name)
    return ElementTree.tostring(domain, encoding="unicode"), left_out


def _separate_tpm(domain: Element, change: Redefinition) -> None:
    """Give a copy's TPM a place of its own, where the definition names one."""
    for source in domain.findall("./devices/tpm/backend[@type='emulator']/source"):
        if path := source.get("path"):
            uuid = domain.findtext("uuid", "")
            source.set("path", tpm_beside(path, change.name, uuid, change.uuid))


def _nvram_pointed(domain: Element, change: Redefinition) -> Sequence[str]:
    """Let NVRAM on RBD refer to its restored image; a copy without one loses it."""
    left_out = []
    for nvram in domain.findall("./os/nvram"):
        if nvram.get("type", "file") == "file":
            continue
        if NVRAM_TARGET in change.exports:
            copy_nvram(nvram, change.exports[NVRAM_TARGET])
        elif NVRAM_TARGET in change.images:
            _point(nvram, NVRAM_TARGET, change.images[NVRAM_TARGET], change)
        elif change.copy:
            for system in domain.findall("os"):
                remove(system, "nvram")
            left_out.append(f"{NVRAM_TARGET}, {NOT_RESTORED}")
    return left_out


def _with_sharers(devices: Element, images: Mapping[str, Restored]) -> Mapping[str, Restored]:
    """Add the disks that share an image with a restored one: it was saved once for all of them."""
    layers = [one for disk in devices.findall("disk") for one in _layers(disk)]
    restored = {_origin(layer): images[target] for target, layer in layers if target in images}
    shared = {target: restored[_origin(layer)] for target, layer in layers if _origin(layer) in restored}
    return {**shared, **images}


def _origin(layer: Element) -> tuple[object, ...]:
    """Return what identifies the image of a layer."""
    places = [one for name in ("source", "source/host", "source/config") for one in layer.findall(name)]
    snapshot = layer.find("source/snapshot") is not None
    return (layer.get("type"), snapshot, *(tuple(sorted(one.attrib.items())) for one in places))


def _pointed(disk: Element, change: Redefinition) -> bool:
    """Let a disk and its layers refer to their restored images; return whether all were restored."""
    layers = list(_layers(disk))
    if change.copy and not layers:
        remove(disk, "backingStore", "mirror")
    if disk.get("device") in REMOVABLE and disk.get("type") not in IMAGE_TYPES:
        return not layers  # its next medium is a file: the restored image was in the drive before
    exports = [change.exports[target] for target, _ in layers if target in change.exports]
    if exports and len(exports) == len(layers):
        lay_over(disk, [layer for _, layer in layers], exports)
        return True
    for target, layer in layers:
        if target in change.images:
            _point(layer, target, change.images[target], change)
    return all(target in change.images for target, _ in layers)


def _layers(disk: Element) -> Iterator[tuple[str, Element]]:
    """Yield the layers of a disk with their targets: vda, vda.backing1, ..."""
    layer: Element | None = disk
    count = 0
    while layer is not None and layer.find("source") is not None:
        yield _target(disk) + (f".backing{count}" if count else ""), layer
        layer, count = layer.find("backingStore"), count + 1


def _point(layer: Element, target: str, image: Image, change: Redefinition) -> None:
    source = layer.find("source")
    assert source is not None, "it had an image"
    if layer.get("type") in ("network", "volume"):
        layer.set("type", "network")  # a volume refers to its old pool and cluster
        for name in ("pool", "volume"):
            source.attrib.pop(name, None)
        source.attrib.update(protocol="rbd", name=str(image))
        _set_monitors(source, change.monitors)
    elif source.get("dev") != f"/dev/rbd/{image}":
        message = f"{target} is the kernel's device {source.get('dev')}, which cannot refer to {image}"
        hint = f"restore without --define; then rbd map {image}, and virsh define the manifest's domain.xml"
        raise BackupError(message, hint)


def _set_monitors(source: Element, monitors: Sequence[tuple[str, str]]) -> None:
    """Set the cluster's monitors, unless one of them is already there.

    Without any, a configuration file on the node would name them, perhaps those of another cluster.
    """
    if any(_is_there(host, *monitor) for host in source.findall("host") for monitor in monitors):
        return
    remove(source, "host", "config")
    source.extend(Element("host", {"name": address, "port": port}) for address, port in monitors)


def _is_there(host: Element, address: str, port: str) -> bool:
    """Return whether a <host> is this monitor: if it speaks msgr2 alone, at the port of msgr2."""
    same = _canonical(host.get("name", "")) == _canonical(address)
    return same and (port != MESSENGER_V2_PORT or host.get("port") == port)


def _canonical(address: str) -> str:
    """Return an IP address in its shortest form, as IPv6 has many; a name as it is.

    One in brackets too: QEMU adds brackets of its own, so that such a <host> cannot be reached.
    """
    try:
        return str(ip_address(address))
    except ValueError:
        return address


def _target(disk: Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""


def _text_of(domain: Element, child: str, text: str) -> None:
    element = domain.find(child)
    assert element is not None, "libvirt always writes it"
    element.text = text
