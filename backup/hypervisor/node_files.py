"""Finds and reads the files of the node that a domain boots from or needs.

(https://libvirt.org/formatdomain.html)
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import replace
from xml.etree.ElementTree import Element

from ..errors import BackupError, reason
from ..model import Definition, Disk, Domain, Gap, NodeFile
from .node_file import read_file, require_saveable
from .qemu_arguments import SAVED_FILES, arguments
from .tpm_state import TPM_TARGET, read_tpm, tpm_place

PACKAGED = re.compile(r"/usr/(?!local/)")  # packages bring these: missing is only what is not installed
LIMIT_NAME = "MAX_FILE_SIZE"

TEXTS = {
    "./os/kernel": "kernel",
    "./os/initrd": "initrd",
    "./os/dtb": "dtb",
    "./os/shim": "shim",
    "./os/loader": "loader",
    "./os/acpi/table": "acpi-table",
}
ATTRIBUTES = {
    ("./os/nvram", "template"): "nvram-template",
    ("./os/varstore", "template"): "varstore-template",
    ("./devices/*/rom", "file"): "rom",
    ("./sysinfo/entry", "file"): "fw-cfg",
}
NAMED_FILE = re.compile(r"(?:^|,)(?:file|data)=([^,]+)")


def needed_files(*xmls: str) -> Sequence[tuple[str, str]]:
    """Return (use, path) of each file that the domain boots from or needs; it only reads them.

    A running domain may need others at its next start than it has now, so both its XMLs are asked.
    """
    found = [pair for xml in xmls if xml for pair in _needed_files(ElementTree.fromstring(xml))]
    by_path = {path: use for use, path in reversed(found) if os.path.isabs(path)}
    return [(use, path) for path, use in reversed(by_path.items())]


def _needed_files(domain: Element) -> Sequence[tuple[str, str]]:
    found = [(use, (one.text or "").strip()) for place, use in TEXTS.items() for one in domain.findall(place)]
    for (place, name), use in ATTRIBUTES.items():
        found += [(use, one.get(name, "")) for one in domain.findall(place)]
    return [*found, *_of_command_line(domain)]


def _of_command_line(domain: Element) -> Iterator[tuple[str, str]]:
    for option, value in arguments(domain):
        name = option.lstrip("-")
        if name in SAVED_FILES:
            named = NAMED_FILE.search(value)
            yield name.replace("_", "-"), named[1] if named else value


def with_files(
    domain: Domain, definition: Definition, limit: int, local: bool
) -> tuple[Definition, tuple[Disk, ...]]:
    """Return the definition with its files, and those that are not saved.

    `local`: the domain's node is this one. Raises BackupError if the TPM's state cannot be read.
    """
    files, unsaved = read_files(domain, (definition.live_xml, definition.inactive_xml), limit, local)
    return replace(definition, files=files), unsaved


def read_files(
    domain: Domain, xmls: Sequence[str], limit: int, local: bool, read: bool = True
) -> tuple[tuple[NodeFile, ...], tuple[Disk, ...]]:
    """Return the domain's files and its TPM's state, and what of them is not saved, each with its reason.

    `xmls`: as the domain runs, "" if it does not, and as it will start. `read`: False checks only which of
    the files are not saved. Raises BackupError if the TPM's state cannot be read.
    """
    files, unsaved = [], []
    for use, path in needed_files(*xmls):
        problem = "" if local else "on another node"  # libvirt reads files of storage pools only
        if domain.override.excludes(target_of(use, path)):
            problem = "excluded"
        elif local:
            file, problem = _file(use, path, limit, read)
            files += [file] if file else []
        if problem and not _of_package(path, local):
            unsaved.append(Disk(target_of(use, path), path, skipped=problem, gap=Gap.FOREIGN))
    if place := tpm_place(next(filter(None, xmls)), domain.uuid):
        if local and not domain.override.excludes(TPM_TARGET):
            files += read_tpm(place, domain.state.active)
        else:
            what = "the state of the TPM" if local else "the state of the TPM, on another node"
            unsaved.append(Disk(TPM_TARGET, place, skipped=what, gap=Gap.FOREIGN))
    return tuple(files), tuple(unsaved)


def target_of(use: str, path: str) -> str:
    """Return the name of a file in lists and for `exclude` in the metadata: without blanks."""
    return re.sub(r"[\s,]+", "_", f"{use}:{path}")


def _of_package(path: str, local: bool) -> bool:
    """Return whether a package brings the file, so that it is not missed although it is not saved."""
    return bool(PACKAGED.match(os.path.normpath(path))) and (not local or os.path.exists(path))


def _file(use: str, path: str, limit: int, read: bool) -> tuple[NodeFile | None, str]:
    """Return the file, or why it is not saved; only the latter without `read`."""
    try:
        require_saveable(os.stat(path), limit, LIMIT_NAME)
        if read:
            return read_file(use, path, limit, limit_name=LIMIT_NAME), ""
    except (OSError, BackupError) as error:
        return None, reason(error) if isinstance(error, OSError) else error.message
    return None, "" if os.access(path, os.R_OK) else "permission denied"
