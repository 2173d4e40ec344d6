"""Finds the images behind a disk's XML. (https://libvirt.org/formatdomain.html, formatstorage.html)"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Callable, Optional
from xml.etree.ElementTree import Element

from ..errors import BackupError
from ..model import ClusterAddress, Disk, Gap, Image, image_named
from .mapped_device import MappedImage

REMOVABLE = ("cdrom", "floppy")
NVRAM_TARGET = "nvram"  # the name of NVRAM that is no file, beside the targets of disks
IMAGE_TYPES = ("network", "volume", "block")  # of disks that may be on an RBD image
# Attributes of <source> that identify it for an admin.
NAMES = ("name", "file", "dev", "volume", "dir", "path")


@dataclass(frozen=True)
class Places:
    """Resolves on the node what a domain's XML only names; both functions raise BackupError.

    `local`: the domain's node is this one.
    """

    pool_xml: Callable[[str], str]  # returns a storage pool's XML by its name
    mapped_image: Callable[[str], Optional[MappedImage]]  # takes the path of a block device
    local: bool = True


@dataclass(frozen=True)
class _Place:
    """An RBD image, or a snapshot of it, the address of its cluster, and the device that shows it, if any."""

    image: Image
    address: ClusterAddress
    snapshot: str = ""
    device: Optional[MappedImage] = None


def layers(element: Element, places: Places) -> tuple[Disk, ...]:
    """Return a <disk> and the layers of its backing chain: vda, vda.backing1, ..."""
    target = attribute(element, "target", "dev")
    top = _disk(element, target, places)
    if element.get("device") in REMOVABLE and _elsewhere(element, top):
        medium = "" if top.source else " without a medium"
        return (Disk(target, top.source, skipped=f"a {element.get('device')}{medium}"),)
    below = [_disk(layer, f"{target}.backing{n}", places) for n, layer in enumerate(_backing(element), 1)]
    read_only = element.find("readonly") is not None
    top = replace(
        top,
        shared=read_only or element.find("shareable") is not None,
        written=top.written and not read_only,
    )
    below = [replace(layer, shared=True, written=False) for layer in below]
    if top.image:  # of no use without the layers below it
        below = [layer if layer.image else replace(layer, gap=Gap.BROKEN) for layer in below]
    image = next((layer.image for layer in below if layer.image), None)
    if image and top.gap is Gap.FOREIGN:
        reason = f"changes on top of RBD image {image} are stored elsewhere: {top.skipped}"
        top = replace(top, skipped=reason, gap=Gap.BROKEN)
    *above, last = (top, *below)
    return (*above, replace(last, needs_header=_ends_in_header([element, *_backing(element)][-1])))


def _ends_in_header(layer: Element) -> bool:
    """Return whether only the image names what it is an overlay of, as in a domain that is shut off."""
    kind = attribute(layer, "driver", "type") or attribute(layer, "format", "type")
    return kind == "qcow2" and layer.find("backingStore") is None


def nvram_disk(nvram: Element, places: Places) -> Disk | None:
    """Return NVRAM that is not a file: saved like a disk if it is on RBD, else broken."""
    if nvram.get("type", "file") == "file":
        return None
    disk = _one_place(nvram, NVRAM_TARGET, places)
    if disk.image:
        return disk
    reason = f"NVRAM that is neither a file nor an RBD image: {disk.skipped}"
    return replace(disk, skipped=reason, gap=Gap.BROKEN)


def _elsewhere(element: Element, medium: Disk) -> bool:
    """Return whether a removable medium is on no RBD image; a volume whose pool is unknown counts as such."""
    return medium.gap is Gap.FOREIGN or (medium.gap is Gap.BROKEN and element.get("type") == "volume")


def _backing(element: Element) -> Iterator[Element]:
    layer = element.find("backingStore")
    while layer is not None and layer.find("source") is not None:
        yield layer
        layer = layer.find("backingStore")


def _disk(element: Element, target: str, places: Places) -> Disk:
    """Return one layer. One whose qcow2 metadata or data is on RBD, but not both in one image, is broken."""
    layer, store = _one_place(element, target, places), element.find("source/dataStore")
    if store is None:
        return layer
    data = _one_place(store, target, places)
    if layer.gap is data.gap is Gap.FOREIGN:
        return layer
    text = f"its qcow2 metadata is in {_named(layer)}, its data in {_named(data)} (dataStore)"
    return Disk(target, layer.source, skipped=text, gap=Gap.BROKEN)


def _named(disk: Disk) -> str:
    return f"RBD image {disk.image}" if disk.image else disk.source or disk.skipped


def _one_place(element: Element, target: str, places: Places) -> Disk:
    disk = Disk(target, shown(element))
    try:
        place = _place(element, places)
    except BackupError as error:
        return replace(disk, skipped=error.message, gap=Gap.BROKEN)
    if place is None:
        kind = attribute(element, "source", "protocol") or element.get("type")
        return replace(disk, skipped=f"no RBD image ({kind})", gap=Gap.FOREIGN)
    if place.snapshot:
        return replace(disk, skipped=f"runs from snapshot {place.snapshot}, which never changes")
    encryption = attribute(element, "source/encryption", "format") or attribute(
        element, "encryption", "format"
    )
    disk = replace(disk, image=place.image, address=place.address, encryption=encryption)
    if place.device is None:
        return replace(disk, client=target, written=True)
    return replace(
        disk,
        client="" if place.device.read_only else place.device.device,
        written=place.device.read_only is False,
    )


def _place(element: Element, places: Places) -> _Place | None:
    """Find the image, None if it is not on RBD. Raises BackupError if it cannot be found out."""
    kind, source = element.get("type"), element.find("source")
    if source is None:
        return None
    if kind == "network" and source.get("protocol") == "rbd":
        auth = element.find("auth")  # in <source> since libvirt 3.9
        address, snapshot = _address(source, auth), attribute(source, "snapshot", "name")
        if address.conf_file and not places.local:
            raise BackupError(f"its Ceph configuration file {address.conf_file} is on another node")
        return _Place(_image(source.get("name", "")), address, snapshot)
    if kind == "volume":
        return _in_pool(source, places)
    if kind == "block":
        mapped = places.mapped_image(source.get("dev", ""))
        if mapped:
            return _Place(mapped.image, ClusterAddress(fsid=mapped.fsid), mapped.snapshot, mapped)
    return None


def _in_pool(source: Element, places: Places) -> _Place | None:
    """Resolve a volume of a libvirt storage pool. Its images are in no namespace."""
    pool = ElementTree.fromstring(places.pool_xml(source.get("pool", "")))
    if pool.get("type") != "rbd":
        return None
    pool_source = pool.find("source")
    assert pool_source is not None, "a pool of type rbd has a source"
    image = Image(pool_source.findtext("name", ""), source.get("volume", ""))
    return _Place(image, _address(pool_source))


def _image(name: str) -> Image:
    image = image_named(name)
    if image is None:
        raise BackupError(f"invalid image name {name!r}, expected pool/image")
    return image


def _address(source: Element, old_auth: Element | None = None) -> ClusterAddress:
    auth = source.find("auth")
    auth = old_auth if auth is None else auth
    secret = auth.find("secret") if auth is not None else None
    return ClusterAddress(
        monitors=tuple(_monitor(host) for host in source.findall("host") if host.get("name")),
        user=auth.get("username", "") if auth is not None else "",
        secret_uuid=secret.get("uuid", "") if secret is not None else "",
        secret_usage=secret.get("usage", "") if secret is not None else "",
        conf_file=attribute(source, "config", "file"),
    )


def _monitor(host: Element) -> str:
    name, port = host.get("name", ""), host.get("port", "")
    if ":" in name and not name.startswith("["):
        name = f"[{name}]"
    return f"{name}:{port}" if port else name


def shown(element: Element) -> str:
    return next((shown for name in NAMES if (shown := attribute(element, "source", name))), "")


def attribute(element: Element, child: str, name: str) -> str:
    found = element.find(child)
    return found.get(name, "") if found is not None else ""
