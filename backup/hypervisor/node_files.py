"""Finds and reads the files of the node that a domain boots from or needs, and the state of its TPM.

(https://libvirt.org/formatdomain.html)
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from xml.etree.ElementTree import Element

from ..errors import BackupError, reason
from ..model import TPM_STATE, Definition, Disk, Domain, Gap, NodeFile
from ..text import size_text
from .device_xml import COMMAND_LINE, QEMU
from .disk_xml import attribute

SWTPM = "/var/lib/libvirt/swtpm"  # where libvirt has the state of TPMs: UUID/tpm2
TPM_DIRECTORIES = {"2.0": "tpm2", "1.2": "tpm1.2"}
NOT_STATE = re.compile(r"\.|TMP")  # how names of swtpm's lock and drafts begin
TPM_TARGET = "tpm"  # what `exclude` in the metadata calls it

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
# Arguments of QEMU's own whose value is a file, or names one as file=PATH.
OPTIONS = ("kernel", "initrd", "dtb", "bios", "option-rom", "fw_cfg", "acpitable", "smbios")
NAMED_FILE = re.compile(r"(?:^|,)(?:file|data)=([^,]+)")


def needed_files(xml: str) -> Sequence[tuple[str, str]]:
    """Return (use, path) of each file that the domain boots from or needs; it only reads them."""
    domain = ElementTree.fromstring(xml)
    found = [(use, (one.text or "").strip()) for place, use in TEXTS.items() for one in domain.findall(place)]
    for (place, name), use in ATTRIBUTES.items():
        found += [(use, one.get(name, "")) for one in domain.findall(place)]
    found += _of_command_line(domain)
    by_path = {path: use for use, path in reversed(found) if os.path.isabs(path)}
    return [(use, path) for path, use in reversed(by_path.items())]


def _of_command_line(domain: Element) -> Iterator[tuple[str, str]]:
    values = [one.get("value", "") for one in domain.findall(f"{COMMAND_LINE}/{QEMU}arg")]
    for option, value in zip(values, values[1:]):
        name = option.lstrip("-")
        if option.startswith("-") and name in OPTIONS:
            named = NAMED_FILE.search(value)
            yield name.replace("_", "-"), named[1] if named else value


def tpm_place(xml: str, uuid: str) -> str:
    """Return the directory or file with the state of the domain's emulated TPM, "" if it has none."""
    for tpm in ElementTree.fromstring(xml).findall("./devices/tpm"):
        backend = tpm.find("backend")
        if backend is not None and backend.get("type") == "emulator":
            named = attribute(backend, "source", "path")
            version = TPM_DIRECTORIES.get(backend.get("version", "2.0"), "tpm2")
            return named or f"{SWTPM}/{uuid}/{version}"
    return ""


def with_files(
    domain: Domain, definition: Definition, limit: int, local: bool
) -> tuple[Definition, tuple[Disk, ...]]:
    """Return the definition with its files, and those that are not saved.

    `local`: the domain's node is this one. Raises BackupError if the TPM's state cannot be read.
    """
    xml = definition.live_xml or definition.inactive_xml
    files, unsaved = read_needed(domain, xml, limit, local=local)
    if place := tpm_place(xml, domain.uuid):
        if local and not domain.override.excludes(TPM_TARGET):
            files = (*files, *read_tpm(place, domain.state.active))
        else:
            what = "the state of the TPM" if local else "the state of the TPM, on another node"
            unsaved = (*unsaved, Disk(TPM_TARGET, place, skipped=what, gap=Gap.FOREIGN))
    return replace(definition, files=files), unsaved


def read_needed(
    domain: Domain, xml: str, limit: int, local: bool, read: bool = True
) -> tuple[tuple[NodeFile, ...], tuple[Disk, ...]]:
    """Return the files that the domain needs, and those that are not saved, each with its reason.

    `read`: False checks only which of them are not saved.
    """
    files, unsaved = [], []
    for use, path in needed_files(xml):
        if not local:  # libvirt reads files of storage pools only
            unsaved.append(_unsaved(use, path, "on another node"))
            continue
        try:
            problem = "excluded" if domain.override.excludes(target_of(use, path)) else _problem(path, limit)
            if read and not problem:
                files.append(read_file(use, path))
        except OSError as error:
            problem = reason(error)
        if problem:
            unsaved.append(_unsaved(use, path, problem))
    return tuple(files), tuple(unsaved)


def _unsaved(use: str, path: str, problem: str) -> Disk:
    return Disk(target_of(use, path), path, skipped=problem, gap=Gap.FOREIGN)


def target_of(use: str, path: str) -> str:
    """Return the name of a file in lists and for `exclude` in the metadata: without blanks."""
    return re.sub(r"[\s,]+", "_", f"{use}:{path}")


def _problem(path: str, limit: int) -> str:
    """Return why a file is not saved, "" if it is. Raises OSError."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size > limit:
        return f"{size_text(status.st_size)}, larger than {size_text(limit)} (MAX_FILE_SIZE)"
    return "" if os.access(path, os.R_OK) else "permission denied"


def read_file(use: str, path: str) -> NodeFile:
    """Read a file with its mode and owner. Raises OSError."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        return NodeFile(use, path, file.read(), stat.S_IMODE(status.st_mode) & 0o777, _owner(status))


def read_tpm(place: str, active: bool) -> tuple[NodeFile, ...]:
    """Return the state of a TPM, () if the domain has never run. Raises BackupError.

    swtpm replaces its files as a whole, so each of them is of one moment, while the guest runs too.
    """
    try:
        paths = [place] if os.path.isfile(place) else _state_files(place)
        files = tuple(read_file(TPM_STATE, path) for path in paths)
        if not files and active:
            raise FileNotFoundError(2, "it is empty")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not active:
            return ()
        hint = f'to exclude it: <backup exclude="{TPM_TARGET}"/> in the domain\'s metadata'
        raise BackupError(
            f"cannot read the state of the domain's TPM {place}: {reason(error)}", hint
        ) from error
    return files


def _state_files(directory: str) -> Sequence[str]:
    names = sorted(name for name in os.listdir(directory) if not NOT_STATE.match(name))
    return [path for path in (f"{directory}/{name}" for name in names) if os.path.isfile(path)]


def with_current_tpm(definition: Definition, uuid: str) -> tuple[NodeFile, ...]:
    """Return the definition's files, the TPM's state as it is now. Raises BackupError."""
    files = tuple(file for file in definition.files if file.use != TPM_STATE)
    if files == definition.files:
        return files
    return (*files, *read_tpm(tpm_place(definition.live_xml or definition.inactive_xml, uuid), True))


def _owner(status: os.stat_result) -> str:
    user, group = str(status.st_uid), str(status.st_gid)
    with suppress(KeyError):
        user = pwd.getpwuid(status.st_uid).pw_name
    with suppress(KeyError):
        group = grp.getgrgid(status.st_gid).gr_name
    return f"{user}:{group}"
