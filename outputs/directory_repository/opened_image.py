"""A disk's file, open for reading: with all that it builds on, if it is qcow2."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Callable, Union

from backup.errors import BackupError
from backup.stored import SavedImage

from .chain import SUFFIX, require_complete
from .errors import named_errors
from .nbd_connection import NbdConnection
from .nbd_server import served
from .new_image import whole_clusters

READERS = 4  # reads of an image at a time, at random


@contextmanager
def opened_image(
    path: Path, saved: SavedImage, runtime_dir: str, readers: int, limit: float, alive: Callable[[], None]
) -> Iterator[Union[RawReads, Qcow2Reads]]:
    """Open the file of a saved image during the block, for so many reads at a time. Raises BackupError."""
    require_complete(path)
    if path.suffix == SUFFIX:
        with served(path, runtime_dir, readers, False, limit, alive) as connections:
            reads = Qcow2Reads(connections, path, saved.size, limit, alive)
            _require_size(path, reads.found, whole_clusters(saved.size))
            yield reads
    else:
        with named_errors("read", path), path.open("rb", buffering=0) as file:
            _require_size(path, os.fstat(file.fileno()).st_size, saved.size)
            yield RawReads(path, file.fileno(), saved.size)


def _require_size(path: Path, found: int, size: int) -> None:
    if found != size:
        raise BackupError(f"{path} has {found} bytes, its manifest {size}", "choose another restore point")


class RawReads:
    """A raw file. Satisfies protocols.ImageReads and protocols.RandomAccess."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.size = size
        self._path = path
        self._descriptor = descriptor

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        return partial(self.read, offset, length)

    def read(self, offset: int, length: int) -> bytes:
        parts, left = [], length
        while left:
            with named_errors("read", self._path):
                part = os.pread(self._descriptor, left, offset + length - left)
            if not part:
                raise BackupError(f"{self._path} has become shorter", "choose another restore point")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


class Qcow2Reads:
    """A served qcow2 file. Satisfies protocols.ImageReads and protocols.RandomAccess.

    `read` is for several threads, `start_read` for one alone. `found` is the size that the file has.
    """

    def __init__(
        self,
        connections: Sequence[socket.socket],
        path: Path,
        size: int,
        limit: float,
        alive: Callable[[], None],
    ) -> None:
        self.size = size
        self._all = [NbdConnection(one, path, limit, alive) for one in connections]
        self.found = self._all[0].size
        self._idle: SimpleQueue[NbdConnection] = SimpleQueue()
        for one in self._all:
            self._idle.put(one)

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        return self._all[0].start_read(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        connection = self._idle.get()
        try:
            return connection.start_read(offset, length)()
        finally:
            self._idle.put(connection)
