"""A domain's XML, as libvirt writes it, turned into disks. (https://libvirt.org/formatdomain.html)"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Optional
from xml.etree.ElementTree import Element

from .errors import BackupError
from .model import ClusterAddress, Disk, Image

AGENT_CHANNEL = "org.qemu.guest_agent.0"


def disks(xml: str) -> tuple[Disk, ...]:
    """Give every disk of the domain; those that are no writable RBD image say why they are not covered."""
    return tuple(_disk(element) for element in ElementTree.fromstring(xml).findall("./devices/disk"))


def agent_connected(live_xml: str) -> bool:
    """Tell whether something in the guest has opened the agent's channel; that it answers is not said."""
    channels = ElementTree.fromstring(live_xml).findall("./devices/channel/target")
    return any(c.get("name") == AGENT_CHANNEL and c.get("state") == "connected" for c in channels)


def nvram_path(xml: str) -> str:
    """Give the path of the domain's NVRAM file, "" if it has none. Raises BackupError if it is no file."""
    nvram = ElementTree.fromstring(xml).find("./os/nvram")
    if nvram is None:
        return ""
    if nvram.get("type", "file") != "file":
        message = f"the domain's NVRAM is no file ({nvram.get('type')}), and can't be saved"
        raise BackupError(message, "exclude the domain, or give it an NVRAM file")
    source = nvram.find("source")  # since libvirt 8.5, where nvram has a type
    return (source.get("file", "") if source is not None else nvram.text or "").strip()


def _disk(element: Element) -> Disk:
    target = _attribute(element, "target", "dev")
    source = element.find("source")
    if source is None:
        return Disk(target, "", not_covered=f"{element.get('device', 'disk')} without a medium")
    shown = _shown(element, source)
    reason = _not_covered(element, source)
    if reason:
        return Disk(target, shown, not_covered=reason)
    image = _image(source.get("name", ""))
    if image is None:
        return Disk(target, shown, not_covered=f"{source.get('name')!r} is no pool/image")
    return Disk(target, shown, image, _address(element, source))


def _not_covered(element: Element, source: Element) -> str:
    kind = element.get("type", "")
    if kind != "network" or source.get("protocol") != "rbd":
        return f"no RBD image ({source.get('protocol', kind)})"
    if element.get("device", "disk") not in ("disk", "lun"):
        return f"a {element.get('device')}"
    if source.find("snapshot") is not None:
        return "runs from a snapshot, which never changes"
    if element.find("readonly") is not None:
        return "read-only"
    return ""


def _shown(element: Element, source: Element) -> str:
    """Give what an admin knows the disk's source by."""
    for attribute in ("name", "file", "dev", "volume", "dir"):
        if source.get(attribute):
            return source.get(attribute, "")
    return element.get("type", "")


def _image(name: str) -> Image | None:
    """Split at slashes: pool/image, or pool/namespace/image. Neither of the parts can hold one."""
    parts = name.split("/")
    if len(parts) == 2 and all(parts):
        return Image(parts[0], parts[1])
    if len(parts) == 3 and all(parts):
        return Image(parts[0], parts[2], namespace=parts[1])
    return None


def _address(element: Element, source: Element) -> ClusterAddress:
    auth = _first(source.find("auth"), element.find("auth"))  # under <disk> until libvirt 3.9
    secret = auth.find("secret") if auth is not None else None
    return ClusterAddress(
        monitors=tuple(_monitor(host) for host in source.findall("host") if host.get("name")),
        user=auth.get("username", "") if auth is not None else "",
        secret_uuid=secret.get("uuid", "") if secret is not None else "",
        secret_usage=secret.get("usage", "") if secret is not None else "",
        conf_file=_attribute(source, "config", "file"),
    )


def _monitor(host: Element) -> str:
    name, port = host.get("name", ""), host.get("port", "")
    if ":" in name and not name.startswith("["):
        name = f"[{name}]"
    return f"{name}:{port}" if port else name


def _first(*elements: Optional[Element]) -> Element | None:
    return next((element for element in elements if element is not None), None)


def _attribute(element: Element, child: str, name: str) -> str:
    found = element.find(child)
    return found.get(name, "") if found is not None else ""
