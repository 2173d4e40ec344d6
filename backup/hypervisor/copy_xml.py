"""Changes the XML of a restored copy: shares nothing with the original; if isolated, has no outside access.

(https://libvirt.org/formatdomain.html)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

from .disk_xml import shown
from .domain_xml import AGENT_CHANNEL
from .firmware import move_loader
from .metadata import ELEMENT, NAMESPACE
from .qemu_arguments import COMMAND_LINE
from .shared_devices import SELF_CONTAINED, with_own_settings

BACKUP = f"{{{NAMESPACE}}}{ELEMENT}"

# Character devices, and their types that connect to nothing outside of QEMU.
CONSOLES = ("serial", "console", "parallel")
OWN_TYPES = ("pty", "null", "vc", "spicevmc", "spiceport", "qemu-vdagent")


def separate(domain: Element, devices: Element, name: str) -> Sequence[str]:
    """Remove from a copy what belongs to the original domain; return what was left out."""
    for nvram in domain.findall("./os/nvram"):
        _renamed_nvram(nvram, name)
    move_loader(domain, name)
    for varstore in domain.findall("./os/varstore"):
        if varstore.get("path"):
            varstore.set("path", nvram_beside(varstore.get("path", ""), name))
    for device in list(devices):
        if device.tag in (*CONSOLES, "channel"):
            _separate_character_device(device, devices)
    left_out = list(with_own_settings(devices))
    if domain.find(COMMAND_LINE) is not None:  # may name files, devices and sockets
        remove(domain, COMMAND_LINE)
        left_out.append("its additional QEMU command line")
    return left_out


def isolate(domain: Element, devices: Element) -> None:
    """Remove from a copy every access to the outside, and exclude it from backups.

    Nothing of it stays on the node: no dump of its memory. It runs as any other QEMU of this node does.
    """
    _contain(domain, devices)
    for backend in devices.findall("tpm/backend"):
        backend.attrib.pop("persistent_state", None)  # libvirt removes the state at the end
    for device in list(devices):
        if device.tag not in SELF_CONTAINED or _connects_to_outside(device):
            devices.remove(device)
        elif device.tag in CONSOLES:
            _disconnect(device, "pty")
        elif device.tag == "audio":  # sound cards refer to it
            device.set("type", "none")
            remove(device, *[child.tag for child in device])
    _exclude_from_backups(domain)


def eject(drive: Element) -> str:
    """Remove a drive's medium, and return what it is known by."""
    medium = shown(drive)
    drive.set("type", "file")
    remove(drive, "source", "backingStore", "mirror", "auth", "encryption")
    return medium


def nvram_beside(path: str, name: str) -> str:
    """Return the path for a copy's NVRAM, as libvirt itself would name it."""
    ending = ".json" if path.endswith(".json") else "_VARS.fd"  # of a varstore
    return os.path.join(os.path.dirname(path), f"{name}{ending}")


def tpm_beside(place: str, name: str, uuid: str, new_uuid: str) -> str:
    """Return the place for the state of a copy's TPM, as libvirt itself would name it."""
    place = os.path.normpath(place)
    if uuid in place:
        return place.replace(uuid, new_uuid)
    return os.path.join(os.path.dirname(place), f"{name}_TPM")


def remove(element: Element, *names: str) -> None:
    for name in names:
        for child in element.findall(name):
            element.remove(child)


def _exclude_from_backups(domain: Element) -> None:
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


def _separate_character_device(device: Element, devices: Element) -> None:
    """Disconnect a device from the original's file, socket, port or line."""
    remove(device, "log")
    if device.get("type") in OWN_TYPES:
        return
    if device.tag != "channel":
        _disconnect(device, "pty")
    elif _attribute(device, "target", "type") == "virtio":
        _disconnect(device, "unix")  # libvirt creates a new socket for it
    else:
        devices.remove(device)


def _disconnect(device: Element, kind: str) -> None:
    device.set("type", kind)
    remove(device, "source", "protocol", "log")


def _contain(domain: Element, devices: Element) -> None:
    """Give it no file, program or user of the node but those that every domain may have."""
    remove(domain, "seclabel", "blkiotune")
    for emulator in devices.findall("emulator"):
        if not os.path.normpath((emulator.text or "").strip()).startswith("/usr/"):
            devices.remove(emulator)
    for backend in devices.findall("rng/backend[@model='random']"):
        backend.text = "/dev/urandom"
    for crash in domain.findall("on_crash"):
        crash.text = "destroy"
    for watchdog in devices.findall("watchdog"):
        watchdog.set("action", "none")


def _connects_to_outside(device: Element) -> bool:
    """Return whether this device, of a kind in SELF_CONTAINED, connects to something outside of QEMU."""
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
