"""A new image's bytes: writes that are under way while others are waited for."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any, Callable

from ..model import Image
from ..protocols import WrittenBytes
from .connection import Connection
from .retry import STOP_POLL


class ImageWriter:
    """An image that is open for writing. Satisfies protocols.ImageWriter.

    A context manager: after its block nothing that it began is under way in librbd. What times out is retried
    as the cluster's `retry` says: the same bytes in the same place of an image that nobody else has.
    """

    def __init__(self, cluster: Connection, image: Image, opened: Any, write_flags: int) -> None:
        """`opened` is the rbd.Image."""
        self._cluster = cluster
        self._image = image
        self._opened = opened
        self._write_flags = write_flags
        self._under_way: set[_Write] = set()

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for write in list(self._under_way):
            write.settle()

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        """Start to write; the returned call waits for it. The bytes must not change until then."""
        write = _Write(self, offset, data)
        retry = self._cluster.retry
        return partial(retry.call, write.wait, retry.check_stop, write.ended_at)

    def begin_write(self, write: _Write) -> Any:
        """Give librbd's completion of a write that is under way from now on, until it is settled."""
        with self._cluster.errors(write.action, self._image):
            completion = self._opened.aio_write(write.data, write.offset, write.end, self._write_flags)
        self._under_way.add(write)
        return completion

    def end_write(self, write: _Write, result: int) -> None:
        """Raise ClusterError if a write that is settled has failed."""
        self._under_way.discard(write)
        if result < 0:
            raise self._cluster.failure(write.action, self._image, -result)

    def check(self) -> None:
        self._cluster.retry.check_stop()


class _Write:
    """A write that is under way, and again where it timed out. Holds its bytes: librbd does not copy them."""

    def __init__(self, writer: ImageWriter, offset: int, data: WrittenBytes) -> None:
        self.offset = offset
        self.data = data
        self.action = f"cannot write {len(data)} bytes at {offset} of"
        self._writer = writer
        self._begin()

    def _begin(self) -> None:
        self._moment = 0.0
        self._ended = threading.Event()
        self._completion = self._writer.begin_write(self)

    def end(self, _completion: Any) -> None:
        """Note that librbd is through with it, or that it has failed."""
        self._moment = time.monotonic()
        self._ended.set()

    def ended_at(self) -> float:
        return self._moment

    def wait(self) -> None:
        """Wait for its end; write once more if it was waited for already. Raises ClusterError."""
        if self._completion is None:
            self._begin()
        while not self._ended.is_set():  # not in librbd, where no signal is heard
            self._writer.check()
            self._ended.wait(STOP_POLL)
        self._writer.end_write(self, self.settle())

    def settle(self) -> int:
        """Wait until librbd is through with it, and give its result."""
        completion, self._completion = self._completion, None
        completion.wait_for_complete_and_cb()
        return int(completion.get_return_value())
