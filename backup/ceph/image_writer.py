"""Writes a new image, with several writes in flight."""

from __future__ import annotations

import errno
import threading
import time
from functools import partial
from typing import Any, Callable

from ..model import Image
from ..protocols import WrittenBytes
from .connection import Connection
from .image_lock import PAUSE
from .retry import STOP_POLL

# What librbd 16.2 makes of a lock that it cannot take in time; or can never take, as it has the lock
# already and was not told (see give_up_own_lock), with the watch that it has now or with an
# earlier one. No other write ends so.
LOCK_REFUSED = (errno.EROFS, errno.EEXIST, errno.EINVAL)

Ended = Callable[[Any], None]


class ImageWriter:
    """An image that is open for writing. Satisfies protocols.ImageWriter.

    A context manager: after its block, none of its writes is in flight in librbd. Writes that time out are
    retried by the cluster's `retry`, which is safe, as nobody else uses the image.
    """

    def __init__(self, cluster: Connection, image: Image, opened: Any, write_flags: int) -> None:
        """`opened` is the rbd.Image."""
        self._cluster = cluster
        self._image = image
        self._opened = opened
        self._write_flags = write_flags
        self._under_way: set[_Write] = set()
        self._beginning = threading.Lock()

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for write in list(self._under_way):
            if write.settle() == -errno.ETIMEDOUT:
                self._cluster.retry.note_timeout()

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        """Start a write; the returned function waits for its end. Until then the bytes must not change."""

        def begin(ended: Ended) -> Any:  # holds the bytes, as librbd does not copy them
            return self._opened.aio_write(data, offset, ended, self._write_flags)

        return self._started(f"cannot write {len(data)} bytes at {offset} of", begin)

    def start_zeros(self, offset: int, length: int) -> Callable[[], None]:
        """Start to make a range read as zeros; the returned function waits for its end.

        Whole objects are removed, of others exactly this range is zeroed. Not so with a discard: librbd
        leaves what is not aligned as it is (rbd_skip_partial_discard).
        """
        action = f"cannot write {length} zeros at {offset} of"
        return self._started(action, partial(self._opened.aio_write_zeroes, offset, length))

    def _started(self, action: str, begin: Callable[[Ended], Any]) -> Callable[[], None]:
        write = _Write(self, action, begin)
        retry = self._cluster.retry
        return partial(retry.call, write.wait, retry.check_stop, write.ended_at)

    def begin_write(self, write: _Write) -> Any:
        """Start a write in librbd, and return its completion; the write is in flight until it is settled."""
        with self._beginning, self._cluster.errors(write.action, self._image):
            completion = write.begin(write.end)
            self._under_way.add(write)
        return completion

    def end_write(self, write: _Write, result: int) -> None:
        """Raise ClusterError if a settled write has failed."""
        self._under_way.discard(write)
        if -result in LOCK_REFUSED:  # nobody else wants it
            self._give_up_lock()
            result = -errno.ETIMEDOUT
        if result < 0:
            raise self._cluster.failure(write.action, self._image, -result)

    def _give_up_lock(self) -> None:
        """Have librbd take the lock anew, unless another write may have it take the lock just now."""
        with self._beginning:
            if all(write.has_ended for write in self._under_way):
                self._cluster.give_up_own_lock(self._image, self._opened)
        time.sleep(PAUSE)

    def check(self) -> None:
        self._cluster.retry.check_stop()


class _Write:
    """A write in flight, repeated if it times out."""

    def __init__(self, writer: ImageWriter, action: str, begin: Callable[[Ended], Any]) -> None:
        """`begin` starts it in librbd, which calls what it is given at the end; it returns a completion."""
        self.action = action
        self.begin = begin
        self._writer = writer
        self._begin()

    def _begin(self) -> None:
        self._moment = 0.0
        self._ended = threading.Event()
        self._completion = self._writer.begin_write(self)

    def end(self, _completion: Any) -> None:
        """Record that librbd has completed it."""
        self._moment = time.monotonic()
        self._ended.set()

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def ended_at(self) -> float:
        return self._moment

    def wait(self) -> None:
        """Wait for its end; a second call writes again. Raises ClusterError."""
        if self._completion is None:
            self._begin()
        while not self._ended.is_set():  # not inside librbd, where signals are not handled
            self._writer.check()
            self._ended.wait(STOP_POLL)
        self._writer.end_write(self, self.settle())

    def settle(self) -> int:
        """Wait until librbd has completed it, and return the result."""
        completion, self._completion = self._completion, None
        completion.wait_for_complete_and_cb()
        return int(completion.get_return_value())
