"""Finds and reads the state of a domain's emulated TPM, which swtpm writes.

(https://libvirt.org/formatdomain.html#tpm-device)
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import suppress

from ..errors import BackupError, TransientError, reason
from ..model import TPM_STATE, Definition, NodeFile
from .disk_xml import attribute
from .node_file import FLAGS, read_file

SWTPM = "/var/lib/libvirt/swtpm"  # where libvirt has the state of TPMs: UUID/tpm2
TPM_DIRECTORIES = {"2.0": "tpm2", "1.2": "tpm1.2"}
# swtpm's names in a directory, such as tpm2-00.permall; not its lock, and not its drafts, TMP2-00.permall
STATE = re.compile(r"tpm2?-[0-9a-f]+(\.\w+)+")
NOT_STATE = re.compile(r"\.lock|TMP2?-[0-9a-f]+(\.\w+)+")
TPM_TARGET = "tpm"  # what `exclude` in the metadata calls it

LIMIT = 16 << 20  # bytes of a file of a state; usual are some kilobytes
ATTEMPTS = 10  # to read a state in one file that does not change meanwhile


def tpm_place(xml: str, uuid: str) -> str:
    """Return the directory or file with the state of the domain's emulated TPM, "" if it has none."""
    for tpm in ElementTree.fromstring(xml).findall("./devices/tpm"):
        backend = tpm.find("backend")
        if backend is not None and backend.get("type") == "emulator":
            named = attribute(backend, "source", "path")
            version = TPM_DIRECTORIES.get(backend.get("version", "2.0"), "tpm2")
            return os.path.normpath(named) if named else f"{SWTPM}/{uuid}/{version}"
    return ""


def files_of_swtpm(directory: str) -> Sequence[str]:
    """Return the paths of all files in a directory that have swtpm's names; () if there is no directory."""
    with suppress(OSError):
        names = os.listdir(directory)
        return [f"{directory}/{name}" for name in names if STATE.fullmatch(name) or NOT_STATE.fullmatch(name)]
    return ()


def read_tpm(place: str, active: bool) -> tuple[NodeFile, ...]:
    """Return the state of a TPM, () if the domain has never run. Raises BackupError."""
    try:
        files = _read(place)
        if not files and active:
            raise _unreadable(place, "it is empty")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not active:
            return ()
        raise _unreadable(place, reason(error)) from error
    return files


def _unreadable(place: str, why: str, kind: type[BackupError] = BackupError) -> BackupError:
    hint = f'to exclude it: <backup exclude="{TPM_TARGET}"/> in the domain\'s metadata'
    return kind(f"cannot read the state of the domain's TPM {place}: {why}", hint)


def with_current_tpm(definition: Definition, uuid: str) -> tuple[NodeFile, ...]:
    """Return the definition's files, the TPM's state as it is now. Raises BackupError."""
    files = tuple(file for file in definition.files if file.use != TPM_STATE)
    if files == definition.files:
        return files
    return (*files, *read_tpm(tpm_place(definition.live_xml or definition.inactive_xml, uuid), True))


def _read(place: str) -> tuple[NodeFile, ...]:
    """Read it. Raises OSError, BackupError."""
    descriptor = os.open(place, FLAGS)
    try:
        names = sorted(filter(STATE.fullmatch, os.listdir(descriptor)))
        return tuple(_in_directory(place, names, descriptor))
    except NotADirectoryError:
        return (_in_one_file(place),)
    finally:
        os.close(descriptor)


def _in_directory(place: str, names: list[str], descriptor: int) -> Iterator[NodeFile]:
    """Read a directory's files: swtpm replaces each as a whole, so that it is of one moment.

    The directory belongs to swtpm's user, so no link in it is followed.
    """
    for name in names:
        try:
            yield _file(f"{place}/{name}", descriptor)
        except FileNotFoundError:  # swtpm removes what a resumed guest no longer needs
            continue


def _in_one_file(place: str) -> NodeFile:
    """Read a file that swtpm writes in place, until two reads agree."""
    found = _file(place)
    for _ in range(ATTEMPTS):
        before, found = found, _file(place)
        if found == before:
            return found
    raise _unreadable(place, "it changes while it is read", TransientError)


def _file(path: str, directory: int | None = None) -> NodeFile:
    try:
        return read_file(TPM_STATE, path, LIMIT, directory)
    except BackupError as error:
        raise _unreadable(path, error.message) from error
