"""Reads a domain's XML. (https://libvirt.org/formatdomain.html)"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from xml.etree.ElementTree import Element

from ..errors import BackupError
from ..model import Disk
from .device_xml import data_devices
from .disk_xml import IMAGE_TYPES, REMOVABLE, Places, attribute, layers, nvram_disk

AGENT_CHANNEL = "org.qemu.guest_agent.0"


def disks(xml: str, places: Places) -> tuple[Disk, ...]:
    """Return all disks of the domain, with the reason for those that cannot be backed up.

    What else it has data in follows them.
    """
    domain = ElementTree.fromstring(xml)
    found = [disk for element in domain.findall("./devices/disk") for disk in layers(element, places)]
    nvram = [disk for element in domain.findall("./os/nvram") if (disk := nvram_disk(element, places))]
    return (*found, *nvram, *data_devices(domain))


def required_media(xml: str) -> Mapping[str, str]:
    """Return the files and devices of the node without which libvirt does not start the domain.

    They are the media of its drives, by the drives' targets.
    """
    found = {}
    for drive in _drives(xml):
        paths = filter(None, (attribute(drive, "source", name) for name in ("file", "dev", "dir")))
        optional = attribute(drive, "source", "startupPolicy") == "optional"
        found.update({attribute(drive, "target", "dev"): path for path in paths if not optional})
    return found


def drives_without_image(xml: str) -> set[str]:
    """Return the targets of the drives that are empty or have a medium that cannot be an RBD image."""
    return {
        attribute(drive, "target", "dev")
        for drive in _drives(xml)
        if drive.find("source") is None or drive.get("type") not in IMAGE_TYPES
    }


def _drives(xml: str) -> Iterator[Element]:
    disks = ElementTree.fromstring(xml).iterfind("./devices/disk")
    return (disk for disk in disks if disk.get("device") in REMOVABLE)


def agent_connected(live_xml: str) -> bool:
    """Return whether the guest has opened the agent's channel; the agent may still not answer."""
    channel = agent_channel(live_xml)
    return channel is not None and attribute(channel, "target", "state") == "connected"


def agent_channel(live_xml: str) -> Element | None:
    """Return the element of the agent's channel, None if the domain has none."""
    channels = ElementTree.fromstring(live_xml).iterfind("./devices/channel")
    return next((c for c in channels if attribute(c, "target", "name") == AGENT_CHANNEL), None)


def require_xml(xml: str) -> None:
    """Raise BackupError unless this is the XML of a domain."""
    try:
        found = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        message = f"the saved definition of the domain is damaged: {error}"
        raise BackupError(message, "another restore point may be sound") from error
    for name in ("name", "uuid", "devices"):
        if found.tag != "domain" or found.find(name) is None:
            message = f"the saved definition of the domain is damaged: no <{name}> in a <domain>"
            raise BackupError(message, "another restore point may be sound")


def nvram_path(xml: str) -> str:
    """Return the path of the domain's NVRAM, "" if it has none that is a file."""
    domain = ElementTree.fromstring(xml)
    varstore = domain.find("./os/varstore")  # since libvirt 12.1: in its place
    if varstore is not None:
        return varstore.get("path", "")
    nvram = domain.find("./os/nvram")
    if nvram is None or nvram.get("type", "file") != "file":
        return ""
    source = nvram.find("source")  # since libvirt 8.5, where nvram has a type
    return (source.get("file", "") if source is not None else nvram.text or "").strip()
