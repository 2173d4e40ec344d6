"""libvirt's storage pools: their definitions, and the files in them."""

from __future__ import annotations

import errno
import os
from typing import Any

import libvirt

from .errors import HypervisorError, libvirt_errors


def pool_xml(connection: Any, name: str) -> str:
    """Return a pool's definition. Raises HypervisorError; TimeoutError if libvirt hangs."""
    try:
        with libvirt_errors(f"cannot look up libvirt's storage pool {name}", "virsh pool-list --all"):
            return str(connection.storagePoolLookupByName(name).XMLDesc())
    except HypervisorError as error:
        if isinstance(error.__cause__, TimeoutError):
            raise error.__cause__ from error  # not the fault of a disk
        raise


def read_file(connection: Any, uri: str, path: str) -> bytes:
    """Read a file of the node that libvirt at `uri` runs on: libvirt hands out files of its pools only.

    Raises HypervisorError, FileNotFoundError.
    """
    directory, name = os.path.split(path)
    hint = f"libvirt reads files of storage pools only: virsh pool-define-as nvram dir --target {directory}"
    try:
        with libvirt_errors(f"cannot read {path} through libvirt at {uri}", hint):
            pool = connection.storagePoolLookupByTargetPath(directory)
            pool.refresh()
            content, stream = bytearray(), connection.newStream()
            pool.storageVolLookupByName(name).download(stream, 0, 0)
            stream.recvAll(lambda _stream, data, _: content.extend(data), None)
            stream.finish()
    except HypervisorError as error:
        if error.code == libvirt.VIR_ERR_NO_STORAGE_VOL:
            raise FileNotFoundError(errno.ENOENT, "no such file") from error
        raise
    return bytes(content)
