"""A snapshot's bytes: what of it is allocated, and reads that are under way while others are waited for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from operator import attrgetter
from typing import Any, Callable

from ..errors import BackupError
from ..model import Extent, Image
from ..stored import Layout, SnapshotId
from .connection import Connection
from .retry import STOP_POLL

# Allocation is listed this many bytes of image at a time, so that a list stays small for any size.
EXTENT_SLAB = 4 << 30
LISTINGS = 2  # slabs that are listed at a time
LISTING_THREADS = 16  # for all listings of the image: restic reads several segments at a time


class ImageReader:
    """A snapshot, open for reading. `size` is its own, whatever the image has become since.

    A context manager: after its block nothing that it began is under way in librbd. What times out is retried
    as the cluster's `retry` says.
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
        self._listings = ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="listing")
        self._under_way: set[_Read] = set()
        self._closed = False

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is under way: librbd must not complete into an image that is closed."""
        self._closed = True  # a listing that timed out is not retried
        self._listings.shutdown(wait=True, cancel_futures=True)
        for read in list(self._under_way):
            read.settle()

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        """Yield what is allocated, parents of a clone included, in ascending order.

        An extent of no bytes tells that all before it was listed: of a large image nothing else may come for
        minutes. The exact listing, object by object: the fast one (whole_object, from the object map) has
        been wrong more than once (Ceph trackers 42248, 53784, 53885, 61616).
        """

        def allocated(slab: Extent) -> Sequence[Extent]:
            found: list[Extent] = []

            def note(offset: int, length: int, exists: bool) -> None:
                if exists:
                    found.append(Extent(offset, length))

            with self._cluster.errors("cannot list what is allocated in", self._image):
                self._opened.diff_iterate(slab.offset, slab.length, None, note)
            return sorted(found, key=attrgetter("offset"))

        return self._listed_ahead(within or Extent(0, self.size), allocated)

    def changes(self, since: str, fast: bool) -> Generator[Extent, None, None]:
        """Yield all that may differ from the older snapshot of this name, in ascending order.

        What was discarded since is among it, and extents of no bytes as in `extents`. `fast`: whole objects,
        from the object maps where Ceph itself does not distrust one of them; see `extents` for why that is
        not the default.
        """
        whole_objects = fast and self._cluster.retry.call(partial(self._has_valid_object_maps, since))

        def changed(slab: Extent) -> Sequence[Extent]:
            found: list[Extent] = []

            def note(offset: int, length: int, _exists: bool) -> None:
                found.append(Extent(offset, length))

            with self._cluster.errors(f"cannot list what has changed since {since} in", self._image):
                self._opened.diff_iterate(slab.offset, slab.length, since, note, True, whole_objects)
            return sorted(found, key=attrgetter("offset"))

        return self._listed_ahead(Extent(0, self.size), changed)

    def _has_valid_object_maps(self, since: str) -> bool:
        """Look at those of both snapshots, and at the image's own, through which all changes went."""
        cluster = self._cluster
        with (
            cluster.errors("cannot open", self._image),
            cluster.opened(self._image, snapshot=since) as before,
            cluster.opened(self._image) as head,
        ):
            return all(map(cluster.has_valid_object_map, (before, self._opened, head)))

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        """Start to read; the returned call waits for the bytes, exactly `length` of them."""
        read = _Read(self, offset, length)
        return partial(self._cluster.retry.call, read.wait, self.check, read.arrived_at)

    def begin_read(self, read: _Read) -> Any:
        """Give librbd's completion of a read that is under way from now on, until it is settled."""
        with self._cluster.errors(read.action, self._image):
            completion = self._opened.aio_read(read.offset, read.length, read.arrive, self._read_flags)
        self._under_way.add(read)
        return completion

    def end_read(self, read: _Read, result: int, data: bytes | None) -> bytes:
        """Give the bytes of a read that is settled. Raises BackupError if these are not all."""
        self._under_way.discard(read)
        if result < 0:
            raise self._cluster.failure(read.action, self._image, -result)
        if data is None or len(data) != read.length:
            got = 0 if data is None else len(data)
            message = f"{read.action} image {self._image}: got only {got} bytes"
            raise BackupError(message, "see ceph health detail; the next run tries again")
        return data

    def check(self) -> None:
        """Raise if nobody waits any more for what is under way, or is to be retried."""
        self._cluster.retry.check_stop()
        if self._closed:
            raise BackupError(f"image {self._image} is closed")

    def _listed_ahead(
        self, whole: Extent, listed: Callable[[Extent], Sequence[Extent]]
    ) -> Generator[Extent, None, None]:
        """Yield what is listed of an extent, in slabs; the next are listed while one is worked on.

        A listing asks for each object that there could be.
        """
        end = whole.offset + whole.length
        slabs = deque(
            Extent(start, min(EXTENT_SLAB, end - start)) for start in range(whole.offset, end, EXTENT_SLAB)
        )
        coming: deque[tuple[Extent, Future[Sequence[Extent]]]] = deque()

        def list_next() -> None:
            if slabs:
                self.check()
                slab = slabs.popleft()
                call = partial(self._cluster.retry.call, partial(listed, slab), self.check)
                coming.append((slab, self._listings.submit(call)))

        try:
            for _ in range(LISTINGS):
                list_next()
            while coming:
                slab, listing = coming.popleft()
                while not wait([listing], STOP_POLL).done:
                    self.check()
                list_next()
                yield from listing.result()
                if coming:
                    yield Extent(slab.offset + slab.length, 0)
        finally:
            for _, listing in coming:
                listing.cancel()


class _Read:
    """A read that is under way, and again where it timed out."""

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
        """Take what librbd has read, or that it has failed."""
        self._data, self._moment = data, time.monotonic()
        self._arrived.set()

    def arrived_at(self) -> float:
        return self._moment

    def wait(self) -> bytes:
        """Wait for the bytes; read once more if they were waited for already. Raises BackupError."""
        if self._completion is None:
            self._begin()
        while not self._arrived.is_set():  # not in librbd, where no signal is heard
            self._reader.check()
            self._arrived.wait(STOP_POLL)
        result = self.settle()
        return self._reader.end_read(self, result, self._data)

    def settle(self) -> int:
        """Wait until librbd is through with it, and give its result."""
        completion, self._completion = self._completion, None
        completion.wait_for_complete_and_cb()
        return int(completion.get_return_value())
