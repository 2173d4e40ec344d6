"""A disk's new file, open for writing: raw and sparse, or qcow2, on what it builds on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from backup.errors import TransientError
from backup.protocols import WrittenBytes
from backup.restore.qemu_img import qemu_img
from backup.system.time_limit import awaited, begun

from ..own_points.written_pieces import StoredImageWriter
from .chain import backing_name
from .domain_directory import sync
from .errors import MOUNTED, named_errors
from .names import QCOW2
from .nbd_connection import NbdConnection
from .nbd_server import INSTALL_HINT, served

WRITERS = 4  # writes of a raw file at a time
# Bytes. Disks have whole clusters: what QEMU leaves in a part of one could be back when a fold enlarges it.
CLUSTER = 64 << 10


@dataclass(frozen=True)
class NewImages:
    """Creates files of disks. `limit`: seconds without progress after which one fails.

    `runtime_dir` is for the sockets of servers.
    """

    kind: str
    runtime_dir: str
    limit: float

    @contextmanager
    def created(
        self, path: Path, size: int, backing: Optional[Path], alive: Callable[[], None]
    ) -> Iterator[StoredImageWriter]:
        """Create a file and open it; after the block all of it is on the disk. Raises BackupError.

        What is not written reads as it does in `backing`, or as zeros. `alive` is called while something is
        waited for, and may raise the reason to stop.
        """
        with named_errors("create", path):
            # 0600: it holds a guest's data
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        opened = self._qcow2(path, size, backing, alive) if self.kind == QCOW2 else _raw(path, size)
        with opened as image:
            yield image
        with named_errors("write", path):
            try:
                awaited(begun(partial(sync, path)), self.limit, alive)
            except TimeoutError as error:
                raise TransientError(f"{path} is not on the disk: {error}", MOUNTED) from error

    @contextmanager
    def _qcow2(
        self, path: Path, size: int, backing: Optional[Path], alive: Callable[[], None]
    ) -> Iterator[NbdConnection]:
        whole = whole_clusters(size)
        base = ("-b", backing_name(backing), "-F", QCOW2) if backing else ()
        # short options: it has no long ones before version 10
        options = ("-q", "-f", QCOW2, "-o", f"cluster_size={CLUSTER}", *base)
        qemu_img(("create", *options, str(path), str(whole)), alive, INSTALL_HINT)
        with served(path, self.runtime_dir, 1, True, self.limit, alive) as (connection,):
            image = NbdConnection(connection, path, self.limit, alive)
            if backing and whole > size:
                image.start_zeros(size, whole - size)()
            yield image
            image.flush()
            image.disconnect()


def whole_clusters(size: int) -> int:
    """Return the size of a qcow2 disk for an image of this size, in bytes."""
    return -(-size // CLUSTER) * CLUSTER


@contextmanager
def _raw(path: Path, size: int) -> Iterator[_RawImage]:
    with path.open("rb+", buffering=0) as file, ThreadPoolExecutor(WRITERS, "raw") as threads:
        with named_errors("write", path):
            os.ftruncate(file.fileno(), size)
        yield _RawImage(path, file.fileno(), threads)


@dataclass(frozen=True)
class _RawImage:
    """A sparse file. Satisfies written_pieces.StoredImageWriter."""

    path: Path
    descriptor: int
    threads: ThreadPoolExecutor

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        future: Future[None] = self.threads.submit(self._write, offset, data)
        return future.result

    def start_zeros(self, offset: int, length: int) -> Callable[[], None]:
        return self.start_write(offset, bytes(length))

    def _write(self, offset: int, data: WrittenBytes) -> None:
        left = memoryview(data)
        while left:
            with named_errors("write", self.path):
                count = os.pwrite(self.descriptor, left, offset)
            left, offset = left[count:], offset + count
