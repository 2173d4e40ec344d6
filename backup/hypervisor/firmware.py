"""Finds firmware that its guest writes to: it has its variables in the same file, in the place of NVRAM.

(https://libvirt.org/formatdomain.html#bios-bootloader)
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import replace
from xml.etree.ElementTree import Element

from ..errors import BackupError, reason
from ..model import Definition, NodeFile
from .domain_xml import nvram_path
from .node_file import read_file
from .node_files import PACKAGED

NVRAM_DIRECTORY = "/var/lib/libvirt/qemu/nvram"  # where libvirt has what guests write
LIMIT = 64 << 20  # bytes; QEMU itself takes no more than 8 MiB unless it is told to


def new_nvram(xml: str, name: str) -> Sequence[str]:
    """Return the paths where libvirt may create NVRAM of a domain when it starts, and then leaves it."""
    if path := nvram_path(xml):
        return [path]
    system = ElementTree.fromstring(xml).find("os")
    if system is None or system.find("nvram") is not None:
        return []
    if system.get("firmware") == "efi" or system.find("loader[@type='pflash']") is not None:
        return [f"{NVRAM_DIRECTORY}/{name}_VARS.{ending}" for ending in ("fd", "qcow2")]
    return []


def unnamed_nvram(xml: str, name: str) -> Sequence[str]:
    """Return the paths where libvirt may have NVRAM of a domain that is shut off, as it has chosen itself.

    Before 9.2 it names the file in no definition, only in the XML of the running domain.
    """
    system = ElementTree.fromstring(xml).find("os[@firmware='efi']")
    if system is None or system.find("loader[@stateless='yes']") is not None:
        return []
    return new_nvram(xml, name)


def writable_loaders(domain: Element) -> Iterator[Element]:
    """Yield the <loader> if the guest writes to its file."""
    for system in domain.findall("os"):
        variables_elsewhere = system.find("nvram") is not None or system.find("varstore") is not None
        for loader in system.findall("loader"):
            packaged = PACKAGED.match(_path(loader))
            unsaid = not (variables_elsewhere or packaged or loader.get("stateless") == "yes")
            writable = loader.get("readonly", "no" if unsaid else "yes") == "no"
            if loader.get("type") == "pflash" and writable and _path(loader):
                yield loader


def writable_loader(xml: str) -> str:
    """Return the path of the firmware that the guest writes to, "" if it has none."""
    loaders = writable_loaders(ElementTree.fromstring(xml)) if xml else ()
    return next(map(_path, loaders), "")


def loader_beside(path: str, name: str) -> str:
    """Return the path for a copy's firmware; not where packages have their files."""
    directory = NVRAM_DIRECTORY if PACKAGED.match(path) else os.path.dirname(path)
    return os.path.join(directory, f"{name}_LOADER.fd")


def move_loader(domain: Element, name: str) -> None:
    """Let a copy have its own firmware, if it writes to it."""
    for loader in list(writable_loaders(domain)):
        loader.text = loader_beside(_path(loader), name)


def of_guest(definition: Definition) -> Iterator[tuple[str, bytes]]:
    """Yield the path and content of each file to which the running guest's firmware writes."""
    yield definition.nvram_path, definition.nvram
    loader = writable_loader(definition.live_xml)
    yield from ((file.path, file.content) for file in definition.files if file.path == loader)


def with_current_loader(definition: Definition) -> Definition:
    """Return the definition with the firmware of the running guest as it is now. Raises BackupError."""
    loader = writable_loader(definition.live_xml)
    files = tuple(_current(file) if file.path == loader else file for file in definition.files)
    return replace(definition, files=files)


def _current(file: NodeFile) -> NodeFile:
    try:
        return read_file(file.use, file.path, LIMIT)
    except OSError as error:
        message = f"cannot read the domain's firmware {file.path}: {reason(error)}"
        raise BackupError(message, "without it the restored guest would not boot") from error


def _path(loader: Element) -> str:
    return (loader.text or "").strip()
