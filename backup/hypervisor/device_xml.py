"""Finds what a domain has data in besides its disks: directories, devices and memory files of its node.

Each is described like a disk that is not on an RBD image. (https://libvirt.org/formatdomain.html)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Callable, Optional
from xml.etree.ElementTree import Element

from ..model import Disk, Gap
from .disk_xml import attribute
from .qemu_arguments import arguments, with_data

RBD_VALUE = re.compile(r'rbd:|driver=rbd|"driver"\s*:\s*"rbd"')


def data_devices(domain: Element) -> tuple[Disk, ...]:
    """Return what the domain has data in besides its disks; a target is the kind of device and its name."""
    found = [READERS[one.tag](one) for one in domain.findall("./devices/*") if one.tag in READERS]
    return tuple(_with_different_targets([*found, _command_line(domain)]))


def _with_different_targets(found: list[Optional[Disk]]) -> Iterator[Disk]:
    count: Counter[str] = Counter()
    for disk in filter(None, found):
        count[disk.target] += 1
        number = count[disk.target]
        yield replace(disk, target=f"{disk.target}#{number}") if number > 1 else disk


def _data(kind: str, name: str, source: str, what: str, gap: Gap = Gap.FOREIGN) -> Disk:
    """`name` becomes part of the target, which `exclude` in the metadata can name: without blanks."""
    name = re.sub(r"[\s,]+", "_", name)
    return Disk(f"{kind}:{name}" if name else kind, source, skipped=what, gap=gap)


def _filesystem(device: Element) -> Disk | None:
    kind, driver = device.get("type", "mount"), attribute(device, "driver", "type")
    if kind == "ram":
        return None
    if kind == "mount":
        kind = driver if driver not in ("", "path", "handle") else "9p"
    source = device.find("source")
    names = ("dir", "file", "dev", "volume", "name", "socket")
    shown = next((found for one in names if source is not None and (found := source.get(one))), "")
    return _data(
        "filesystem", attribute(device, "target", "dir"), shown, f"no RBD image ({kind} file system)"
    )


def _hostdev(device: Element) -> Disk | None:
    kind = device.get("type", "")
    if (device.get("mode"), kind) == ("capabilities", "net"):
        return None
    source = device.find("source")
    name = "" if source is None else _hostdev_name(source)
    return _data("hostdev", name, name, f"no RBD image ({kind or 'unknown'} device of the node)")


def _hostdev_name(source: Element) -> str:
    """Return what identifies the device, the same in the live and the inactive definition."""
    adapter = attribute(source, "adapter", "name")
    vendor, product = attribute(source, "vendor", "id"), attribute(source, "product", "id")
    address = source.find("address")
    found = dict(address.attrib) if address is not None else {}
    if vendor:
        return f"{_hex(vendor)}:{_hex(product)}"
    if "slot" in found:
        return "{}:{}:{}.{}".format(*(_hex(found.get(one, "0")) for one in PCI_ADDRESS))
    if adapter or found:
        parts = (adapter, *(found.get(one, "") for one in ("uuid", "bus", "target", "unit", "device")))
        return ":".join(filter(None, parts))
    return (
        source.get("name") or source.get("wwpn") or source.findtext("block") or source.findtext("char") or ""
    )


def _hex(number: str) -> str:
    return number[2:] if number.startswith("0x") else number


def _memory(device: Element) -> Disk | None:
    """nvdimm and virtio-pmem are kept in a file or device; other memory is lost at each shutdown."""
    path = device.findtext("source/path", "").strip()
    what = f"no RBD image (persistent memory, {device.get('model')})"
    return _data("memory", path, path, what) if path else None


def _shmem(device: Element) -> Disk:
    model = attribute(device, "model", "type") or "ivshmem"
    what = f"no RBD image (shared memory, {model})"
    return _data("shmem", device.get("name", ""), attribute(device, "server", "path"), what)


def _pstore(device: Element) -> Disk:
    path = device.findtext("path", "").strip()
    return _data("pstore", "", path, "no RBD image (the guest kernel's pstore)")


def _tpm(device: Element) -> Disk | None:
    """The state of an emulated TPM is saved with the definition."""
    backend = device.find("backend")
    kind = "" if backend is None else backend.get("type", "")
    if backend is None or kind == "emulator":
        return None
    source = attribute(backend, "device", "path") or attribute(backend, "source", "path")
    return _data("tpm", "", source, f"no RBD image ({kind} TPM)")


def _command_line(domain: Element) -> Disk | None:
    """Its arguments are not shown: they may hold passwords."""
    shown = " ".join(with_data(domain))
    if not shown:
        return None
    if any(RBD_VALUE.search(value) for _, value in arguments(domain)):
        return _data("qemu", "commandline", shown, "an RBD image in QEMU's own arguments", Gap.BROKEN)
    return _data("qemu", "commandline", shown, "no RBD image (QEMU's own arguments)")


PCI_ADDRESS = ("domain", "bus", "slot", "function")
READERS: Mapping[str, Callable[[Element], Optional[Disk]]] = {
    "filesystem": _filesystem,
    "hostdev": _hostdev,
    "memory": _memory,
    "shmem": _shmem,
    "pstore": _pstore,
    "tpm": _tpm,
}
