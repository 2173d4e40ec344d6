"""Writes a new image, with several writes in flight."""

from __future__ import annotations

import errno
import threading
import time
from functools import partial
from typing import Any, Callable

from ..model import Image
from ..protocols import WrittenBytes
from .cluster import Cluster
from .image_lock import LOCK_REFUSED, PAUSE, refused_as_changes_are
from .retry import STOP_POLL

Ended = Callable[[Any], None]


class ImageWriter:
    """An image that is open for writing. Satisfies protocols.ImageWriter.

    A context manager: after its block, none of its writes is in flight in librbd. Writes that time out are
    retried by the cluster's `retry`, which is safe, as nobody else uses the image.
    """

    def __init__(self, cluster: Cluster, image: Image, opened: Any, write_flags: int) -> None:
        """`opened` is the rbd.Image."""
        self._cluster = cluster
        self._image = image
        self._opened = opened
        self._write_flags = write_flags
        self._under_way: set[_Write] = set()
        self._beginning = threading.Lock()  # held while `_under_way` changes
        self._known_since = 0.0  # of time.monotonic(): librbd knows who has the image's lock

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

        return self._started(f"cannot write {len(data)} bytes at {offset} of", begin, offset + len(data))

    def start_zeros(self, offset: int, length: int) -> Callable[[], None]:
        """Start to make a range read as zeros; the returned function waits for its end.

        Whole objects are removed, of others exactly this range is zeroed. Not so with a discard: librbd
        leaves what is not aligned as it is (rbd_skip_partial_discard).
        """
        action = f"cannot write {length} zeros at {offset} of"
        begin = partial(self._opened.aio_write_zeroes, offset, length)
        return self._started(action, begin, offset + length)

    def flush(self) -> None:
        """Have what was written reach the cluster; none is in flight. Raises ClusterError."""

        def flush() -> None:  # the first change of an image that nothing is written to: it takes the lock
            with refused_as_changes_are():
                self._opened.flush()

        self._cluster.changed("cannot flush", self._image, self._opened, flush)

    def _started(self, action: str, begin: Callable[[Ended], Any], end: int) -> Callable[[], None]:
        write = _Write(self, action, begin, end)
        retry = self._cluster.retry
        return partial(retry.call, write.wait, retry.check_stop, write.ended_at)

    def begin_write(self, write: _Write) -> Any:
        """Start a write in librbd, and return its completion; the write is in flight until it is settled."""
        with self._beginning, self._cluster.errors(write.action, self._image):
            completion = write.begin(write.note_end)
            self._under_way.add(write)
        return completion

    def end_write(self, write: _Write, result: int) -> None:
        """Raise ClusterError if a settled write has failed."""
        with self._beginning:
            self._under_way.discard(write)
            if result >= 0:
                self._known_since = max(self._known_since, write.ended_at())
        beyond = result == -errno.EINVAL and write.end > self._opened.size()  # somebody shrinks the image
        if -result in LOCK_REFUSED and not beyond:
            self._give_up_lock(write.ended_at())  # nobody else wants it
            result = -errno.ETIMEDOUT
        if result < 0:
            raise self._cluster.failure(write.action, self._image, -result)

    def _give_up_lock(self, refused_at: float) -> None:
        """Have librbd take the lock anew, unless it may have taken it since a write was refused it.

        All that wait for the lock are refused it at once, and are settled one after another.
        """
        with self._beginning:
            idle = all(write.has_ended for write in self._under_way)
            if idle and refused_at > self._known_since:
                self._cluster.give_up_own_lock(self._image, self._opened)
                self._known_since = time.monotonic()
        time.sleep(PAUSE)

    def check(self) -> None:
        self._cluster.retry.check_stop()


class _Write:
    """A write in flight, repeated if it times out."""

    def __init__(self, writer: ImageWriter, action: str, begin: Callable[[Ended], Any], end: int) -> None:
        """`begin` starts it in librbd, which calls what it is given at the end; it returns a completion.

        `end`: the offset of what follows it in the image.
        """
        self.action = action
        self.begin = begin
        self.end = end
        self._writer = writer
        self._begin()

    def _begin(self) -> None:
        self._moment = 0.0
        self._ended = threading.Event()
        self._completion = self._writer.begin_write(self)

    def note_end(self, _completion: Any) -> None:
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
