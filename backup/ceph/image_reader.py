"""Reads a snapshot: keeps several reads in flight."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Generator
from functools import partial
from typing import Any, Callable

from ..errors import BackupError
from ..model import Extent, Image
from ..stored import Layout, SnapshotId
from .connection import Connection
from .read_rate import ReadRate
from .retry import STOP_POLL
from .snapshot_listing import SnapshotListing


class ImageReader:
    """A snapshot, open for reading. `size` is the snapshot's, not the image's current size.

    A context manager: after its block, none of its calls is in flight in librbd. Calls that time out are
    retried by the cluster's `retry`.
    """

    def __init__(
        self,
        cluster: Connection,
        image: Image,
        opened: Any,
        layout: Layout,
        read_flags: int,
        source: SnapshotId,
    ) -> None:
        """`opened` is the rbd.Image."""
        self._cluster = cluster
        self._image = image
        self._opened = opened
        self._read_flags = read_flags
        self.size = int(opened.size())
        self.layout = layout
        self.source = source
        self._listing = SnapshotListing(cluster, image, opened, self.check)
        self._under_way: set[_Read] = set()
        self._closed = False
        self._rate = ReadRate(cluster.read_rate)

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for calls in flight: librbd must not complete them after the image was closed."""
        self._closed = True  # a listing that timed out is not retried
        self._listing.close()
        for read in list(self._under_way):
            if read.settle() == -errno.ETIMEDOUT:
                self._cluster.retry.note_timeout()

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        """Yield the allocated extents, see SnapshotListing; `within`: of a part of the image."""
        return self._listing.extents(within or Extent(0, self.size))

    def changes(self, since: str, fast: bool) -> Generator[Extent, None, None]:
        """Yield the extents that may differ from the older snapshot `since`, see SnapshotListing."""
        return self._listing.changes(since, fast)

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        """Start a read; the returned function waits for the bytes, exactly `length` of them.

        Waits first if there is a limit of the rate.
        """
        self._rate.wait(length, self.check)
        read = _Read(self, offset, length)
        return partial(self._cluster.retry.call, read.wait, self.check, read.arrived_at)

    def begin_read(self, read: _Read) -> Any:
        """Start a read in librbd, and return its completion; the read is in flight until it is settled."""
        with self._cluster.errors(read.action, self._image):
            completion = self._opened.aio_read(read.offset, read.length, read.arrive, self._read_flags)
        self._under_way.add(read)
        return completion

    def end_read(self, read: _Read, result: int, data: bytes | None) -> bytes:
        """Return the bytes of a settled read. Raises BackupError if some are missing."""
        self._under_way.discard(read)
        if result < 0:
            raise self._cluster.failure(read.action, self._image, -result)
        if data is None or len(data) != read.length:
            got = 0 if data is None else len(data)
            message = f"{read.action} image {self._image}: got only {got} bytes"
            raise BackupError(message, "see ceph health detail; the next run reads it again")
        return data

    def check(self) -> None:
        """Raise if the job has to stop or the reader is closed, so that nothing is waited for or retried."""
        self._cluster.retry.check_stop()
        if self._closed:
            raise BackupError(f"image {self._image} is closed")


class _Read:
    """A read in flight, repeated if it times out."""

    def __init__(self, reader: ImageReader, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length
        self.action = f"cannot read {length} bytes at {offset} of"
        self._reader = reader
        self._begin()

    def _begin(self) -> None:
        self._data: bytes | None = None
        self._moment = 0.0
        self._arrived = threading.Event()
        self._completion = self._reader.begin_read(self)

    def arrive(self, _completion: Any, data: bytes | None) -> None:
        """Receive the bytes from librbd, None if the read failed."""
        self._data, self._moment = data, time.monotonic()
        self._arrived.set()

    def arrived_at(self) -> float:
        return self._moment

    def wait(self) -> bytes:
        """Wait for the bytes; a second call reads again. Raises BackupError."""
        if self._completion is None:
            self._begin()
        while not self._arrived.is_set():  # not inside librbd, where signals are not handled
            self._reader.check()
            self._arrived.wait(STOP_POLL)
        result = self.settle()
        return self._reader.end_read(self, result, self._data)

    def settle(self) -> int:
        """Wait until librbd has completed it, and return the result."""
        completion, self._completion = self._completion, None
        completion.wait_for_complete_and_cb()
        return int(completion.get_return_value())
