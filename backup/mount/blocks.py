"""Reads blocks of images, each once, and keeps those that were read last.

An output may have to fetch more than a megabyte for any byte of an image.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Callable, Union

from ..errors import BackupError

CACHED_BLOCKS = 192  # blocks of all images together: as many MiB
READERS = 4  # reads at a time
END_LIMIT = 2.0  # seconds to wait for reads in flight at the end

Data = Union[bytes, memoryview]
Key = tuple[str, int]  # an image's target, the block's number
Load = Callable[[], Sequence[Data]]


class Blocks:
    """The blocks that are kept, or being read."""

    def __init__(self, readers: ThreadPoolExecutor) -> None:
        self._readers = readers
        self._lock = threading.Lock()
        self._cached: OrderedDict[Key, Future[Data]] = OrderedDict()
        self._closed = False

    def __contains__(self, key: Key) -> bool:
        return key in self._cached

    def is_read(self, key: Key) -> bool:
        """Return whether the block is there at once."""
        found = self._cached.get(key)
        return found is not None and found.done()

    def get(self, key: Key, load: Load) -> Future[Data]:
        """Return a block, which `load` reads unless it is there. Raises BackupError if it is closed."""
        with self._lock:
            if found := self._cached.get(key):
                self._cached.move_to_end(key)
                return found
            return self._started([key], load)[0]

    def read_ahead(self, keys: Sequence[Key], load: Load) -> None:
        """Start to read blocks together, which `load` does, unless one of them is there."""
        with self._lock:
            if not any(key in self._cached for key in keys):
                self._started(keys, load)

    def close(self) -> None:
        """Read no more; wait a moment for the reads in flight: one that hangs ends with the output."""
        self._closed = True
        with self._lock:
            pending = [one for one in self._cached.values() if not one.done()]
        wait(pending, END_LIMIT)

    def _require_open(self) -> None:
        if self._closed:
            raise BackupError("the file system is being unmounted")

    def _started(self, keys: Sequence[Key], load: Load) -> Sequence[Future[Data]]:
        self._require_open()
        futures: Sequence[Future[Data]] = [Future() for _ in keys]
        self._cached.update(zip(keys, futures))
        while len(self._cached) > CACHED_BLOCKS:
            self._cached.popitem(last=False)
        self._readers.submit(self._read, keys, futures, load)
        return futures

    def _read(self, keys: Sequence[Key], futures: Sequence[Future[Data]], load: Load) -> None:
        try:
            self._require_open()
            blocks = load()
        except BaseException as error:  # also a bug: without an answer a reader would wait for ever
            with self._lock:  # the next reader tries again
                for key in keys:
                    self._cached.pop(key, None)
            for future in futures:
                future.set_exception(error)
        else:
            for future, block in zip(futures, blocks):
                future.set_result(block)


@contextmanager
def cached_blocks() -> Iterator[Blocks]:
    """Keep blocks during the block."""
    readers = ThreadPoolExecutor(READERS, thread_name_prefix="blocks")
    blocks = Blocks(readers)
    try:
        yield blocks
    finally:
        blocks.close()
        readers.shutdown(wait=False)
