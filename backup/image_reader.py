"""A snapshot's bytes: what of it is allocated, and reads that are under way while others are waited for."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable

from .errors import BackupError
from .model import Extent, Image, Layout

if TYPE_CHECKING:
    from .cluster import Cluster

# Allocation is listed this many bytes of image at a time, so that a list stays small for any size.
EXTENT_SLAB = 4 << 30


class ImageReader:
    """A snapshot, open for reading. `size` is its own, whatever the image has become since."""

    def __init__(self, cluster: Cluster, image: Image, opened: Any, layout: Layout, read_flags: int) -> None:
        """`opened` is the rbd.Image."""
        self._cluster = cluster
        self._image = image
        self._opened = opened
        self._read_flags = read_flags
        self.size = int(opened.size())
        self.layout = layout

    def extents(self) -> Generator[Extent, None, None]:
        """Yield what is allocated, parents of a clone included, in ascending order.

        The exact listing, object by object: the fast one (whole_object, from the object map) has been
        wrong more than once (Ceph trackers 42248, 53784, 53885, 61616). It asks for each object there could
        be, so the next slab is listed while this one is read.
        """
        if not self.size:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="listing") as thread:
            coming = thread.submit(self._listed, 0)
            for start in range(0, self.size, EXTENT_SLAB):
                found = coming.result()
                if start + EXTENT_SLAB < self.size:
                    coming = thread.submit(self._listed, start + EXTENT_SLAB)
                yield from found

    def _listed(self, start: int) -> Sequence[Extent]:
        found: list[tuple[int, int]] = []

        def note(offset: int, length: int, exists: bool) -> None:
            if exists:
                found.append((offset, length))

        with self._cluster.errors("cannot list what is allocated in", self._image):
            self._opened.diff_iterate(start, min(EXTENT_SLAB, self.size - start), None, note)
        return [Extent(offset, length) for offset, length in sorted(found)]

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        """Start to read; the returned call waits for the bytes, exactly `length` of them."""
        data: bytes | None = None

        def arrived(_completion: Any, read: bytes | None) -> None:
            nonlocal data
            data = read

        action = f"cannot read {length} bytes at {offset} of"
        with self._cluster.errors(action, self._image):
            completion = self._opened.aio_read(offset, length, arrived, self._read_flags)

        def wait() -> bytes:
            completion.wait_for_complete_and_cb()
            result = completion.get_return_value()
            if result < 0:
                raise self._cluster.failure(action, self._image, -result)
            if data is None or len(data) != length:
                got = 0 if data is None else len(data)
                raise BackupError(f"{action} image {self._image}: got only {got} bytes")
            return data

        return wait
