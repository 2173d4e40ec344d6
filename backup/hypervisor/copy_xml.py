"""A copy's XML: nothing in it is another domain's; and isolated, nothing in it reaches beyond the copy.

(https://libvirt.org/formatdomain.html)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

from .domain_xml import AGENT_CHANNEL
from .metadata import ELEMENT, NAMESPACE

COMMAND_LINE = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"
BACKUP = f"{{{NAMESPACE}}}{ELEMENT}"

# Character devices, and their types that lead to nothing outside of their QEMU.
CONSOLES = ("serial", "console", "parallel")
OWN_TYPES = ("pty", "null", "vc", "spicevmc", "spiceport", "qemu-vdagent")

# What a guest can boot with that nobody else is behind. All other devices are the network's, the node's, or
# somebody's on it, who expects another domain there.
SELF_CONTAINED = (
    *("emulator", "disk", "controller", "hub", "input", "video", "sound", "audio", "rng", "tpm", "nvram"),
    *("memory", "memballoon", "iommu", "watchdog", "panic", "channel", *CONSOLES),
)


def separate(domain: Element, devices: Element, name: str) -> Sequence[str]:
    """Leave a copy nothing that belongs to the domain that was saved; tell what it has to do without."""
    left_out = []
    for interface in devices.findall("interface"):
        remove(interface, "mac")
    for nvram in domain.findall("./os/nvram"):
        _renamed_nvram(nvram, name)
    for device in list(devices):
        if device.tag in (*CONSOLES, "channel"):
            _part_character_device(device, devices)
        elif _is_storage(device):
            devices.remove(device)
            left_out.append(f"a device {device.tag}, whose data is not in the backup")
    if domain.find(COMMAND_LINE) is not None:  # which may name files, devices and sockets
        remove(domain, COMMAND_LINE)
        left_out.append("what it gives to QEMU's command line")
    return left_out


def isolate(domain: Element, devices: Element) -> None:
    """Leave a copy nothing that reaches beyond it, and no part in backups."""
    for device in list(devices):
        if device.tag not in SELF_CONTAINED or _reaches_out(device):
            devices.remove(device)
        elif device.tag in CONSOLES:
            _lead_nowhere(device, "pty")
        elif device.tag == "audio":  # sound cards refer to it
            device.set("type", "none")
            remove(device, *[child.tag for child in device])
    _keep_out_of_backups(domain)


def nvram_beside(path: str, name: str) -> str:
    """Give the path for a copy's NVRAM: named as libvirt itself would name it."""
    return os.path.join(os.path.dirname(path), f"{name}_VARS.fd")


def remove(element: Element, *names: str) -> None:
    for name in names:
        for child in element.findall(name):
            element.remove(child)


def _keep_out_of_backups(domain: Element) -> None:
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = SubElement(domain, "metadata")
    remove(metadata, BACKUP)
    SubElement(metadata, BACKUP, {"enabled": "no"})


def _renamed_nvram(nvram: Element, name: str) -> None:
    source = nvram.find("source")  # since libvirt 8.5, where nvram has a type
    if source is not None and source.get("file"):
        source.set("file", nvram_beside(source.get("file", ""), name))
    elif nvram.text and nvram.text.strip():
        nvram.text = nvram_beside(nvram.text.strip(), name)


def _part_character_device(device: Element, devices: Element) -> None:
    """End at the copy what ends in the other's file, socket, port or line."""
    remove(device, "log")
    if device.get("type") in OWN_TYPES:
        return
    if device.tag != "channel":
        _lead_nowhere(device, "pty")
    elif _attribute(device, "target", "type") == "virtio":
        _lead_nowhere(device, "unix")  # libvirt gives it a socket of its own
    else:
        devices.remove(device)


def _lead_nowhere(device: Element, kind: str) -> None:
    device.set("type", kind)
    remove(device, "source", "protocol", "log")


def _is_storage(device: Element) -> bool:
    """Tell whether it holds data beside the disks, which the other domain writes to."""
    if device.tag == "memory":  # nvdimm, virtio-pmem
        return device.find("source/path") is not None
    if device.tag == "hostdev":
        return device.get("type") in ("scsi", "scsi_host")
    return device.tag == "pstore"


def _reaches_out(device: Element) -> bool:
    """Tell whether a device that may be self-contained is not: it depends on what is behind it."""
    if device.tag == "channel":
        return _attribute(device, "target", "name") != AGENT_CHANNEL
    if device.tag == "input":
        return device.find("source") is not None
    if device.tag == "tpm":
        return _attribute(device, "backend", "type") != "emulator"
    return device.tag == "rng" and _attribute(device, "backend", "model") == "egd"


def _attribute(element: Element, child: str, name: str) -> str:
    found = element.find(child)
    return found.get(name, "") if found is not None else ""
