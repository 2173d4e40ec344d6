"""The directory with the socket on which QEMU reads the restore point."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from ..errors import NotPossibleHere, reason
from ..instant.record import Record
from ..restore.written_files import Written, remove_left, written_for_a_while
from .given import Given


@contextmanager
def socket_directory(given: Given, record: Record) -> Iterator[str]:
    """Have the directory during the block; give the socket's path. Raises NotPossibleHere.

    It is recorded, so that a cleanup removes it if this process is killed; the next one makes it again. What
    a killed one left is removed first: a later cleanup would take the new socket, which has the same path.
    """
    directory, path = given.directory(record), given.socket(record)
    domain, hypervisor = given.domain, given.domain.hypervisor
    remove_left(domain.state_dir, {hypervisor.uri: hypervisor}.get, given.reporter)
    written = Written(domain.name, socket.gethostname(), hypervisor.uri, "", [path], (), [str(directory)])
    with written_for_a_while(domain.state_dir, written, hypervisor.needed_paths, given.reporter):
        try:
            directory.mkdir(exist_ok=True)
            directory.chmod(0o711)  # QEMU runs as another user
        except OSError as error:
            message = f"cannot use {directory} (DRILL_DIR): {reason(error)}"
            raise NotPossibleHere(message, "a systemd unit needs it in ReadWritePaths=") from error
        yield path


def users_of_socket(given: Given) -> Collection[int]:
    """Return the UIDs that may connect: QEMU's, and our own."""
    return {os.geteuid(), 0, *given.domain.hypervisor.qemu_users()}
