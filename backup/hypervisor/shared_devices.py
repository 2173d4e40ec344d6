"""Removes from a copy what it cannot have beside the original: shared data, and what only one domain can use.

Devices that several domains can have lose the original's names and numbers.
(https://libvirt.org/formatdomain.html)
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from .device_xml import READERS
from .disk_xml import attribute, shown

# Devices that connect to nothing outside of QEMU, but for what the functions below except.
SELF_CONTAINED = (
    *("emulator", "disk", "controller", "hub", "input", "video", "sound", "audio", "rng", "tpm", "nvram"),
    *("memory", "memballoon", "iommu", "watchdog", "panic", "crypto", "channel"),
    *("serial", "console", "parallel"),
)
# Devices that connect to what several domains can use at the same time.
CONNECTED = ("interface", "graphics", "vsock", "redirdev", "redirfilter", "smartcard")

# Network interfaces that several domains can have: a tap device of their own, or a network of QEMU's own.
SHAREABLE_INTERFACES = ("network", "bridge", "direct", "ethernet", "user", "mcast", "client", "null")


def without_shared(devices: Element) -> Iterator[str]:
    """Remove the devices that a copy cannot have beside the original; yield each for an admin."""
    for device in list(devices):
        if title := _shared(device):
            devices.remove(device)
            yield f"{title}, which the copy would share with the original"


def with_own_settings(devices: Element) -> Iterator[str]:
    """Remove the original's names and numbers from a copy's devices; yield those that an admin has set."""
    for interface in devices.findall("interface"):
        yield from _own_interface(interface)
    for display in devices.findall("graphics"):
        yield from _own_display(display)
    for vsock in devices.findall("vsock"):
        for cid in vsock.findall("cid"):
            if cid.attrib.pop("address", "") and cid.get("auto") != "yes":
                yield "the fixed address of its vsock"
            cid.set("auto", "yes")
    for audio in devices.findall("audio[@type='file']"):  # sound cards refer to it
        audio.set("type", "none")
        if audio.attrib.pop("path", ""):
            yield "the file of its audio backend"


def _shared(device: Element) -> str:
    """Return what to call a device that the copy cannot have, "" for others."""
    if device.tag in READERS:  # it has data besides the disks; or a device of the node
        disk = READERS[device.tag](device)
        return str(disk) if disk else _title(device) if device.tag == "hostdev" else ""
    if device.tag in SELF_CONTAINED or device.tag in CONNECTED:
        return _title(device) if _exclusive(device) else ""
    return _title(device)


def _exclusive(device: Element) -> bool:
    kind, source = device.get("type", ""), device.find("source")
    if device.tag == "interface":
        passed_through = source is not None and source.get("mode") == "passthrough"
        taken = kind == "ethernet" and attribute(device, "target", "managed") == "no"
        return kind not in SHAREABLE_INTERFACES or passed_through or taken
    if device.tag == "redirdev":
        return kind != "spicevmc"
    if device.tag == "smartcard":
        return device.get("mode") == "host" or kind not in ("", "spicevmc")
    if device.tag == "rng":
        return any(one.get("mode") == "bind" for one in device.findall("backend/source"))
    return device.tag == "input" and source is not None


def _title(device: Element) -> str:
    kind, name = device.get("type") or device.get("mode") or "", _name(device)
    return " ".join(filter(None, (device.tag, kind, f"({name})" if name else "")))


def _name(device: Element) -> str:
    key = device.findtext("key", "")  # of a lease
    return shown(device) or key or attribute(device, "source", "evdev")


def _own_interface(interface: Element) -> Iterator[str]:
    for child in interface.findall("mac") + interface.findall("portForward"):
        interface.remove(child)
        if child.tag == "portForward":
            yield "a port of the node that leads to it (portForward)"
    for target in interface.findall("target"):
        if name := target.attrib.pop("dev", ""):
            yield f"the name {name} of its network device"
    for parameters in interface.findall("virtualport/parameters"):
        for one in ("interfaceid", "instanceid"):
            parameters.attrib.pop(one, None)
    for backend in interface.findall("backend"):
        backend.attrib.pop("logFile", None)


def _own_display(display: Element) -> Iterator[str]:
    """A display gets ports and sockets that are free."""
    fixed = [display.attrib.pop(one, "") for one in ("port", "tlsPort")]
    if display.get("autoport", "no") == "no" and any(port not in ("", "-1", "0") for port in fixed):
        yield f"the fixed port of its {display.get('type')} display"
    if any(fixed):
        display.set("autoport", "yes")
    if display.get("websocket", "-1") != "-1":
        display.set("websocket", "-1")
        yield f"the fixed websocket of its {display.get('type')} display"
    places = (display, *display.findall("listen"))
    sockets = [one.attrib.pop("socket", "") for one in places] + [display.attrib.pop("address", "")]
    if any(sockets):
        yield f"the socket of its {display.get('type')} display"
