"""A snapshot's bytes: what of it is allocated, and reads that are under way while others are waited for."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Callable

from .errors import BackupError
from .model import Extent, Image, Layout, SnapshotId

if TYPE_CHECKING:
    from .cluster import Cluster

# Allocation is listed this many bytes of image at a time, so that a list stays small for any size.
EXTENT_SLAB = 4 << 30
LISTINGS = 2  # slabs that are listed at a time


class ImageReader:
    """A snapshot, open for reading. `size` is its own, whatever the image has become since."""

    def __init__(
        self,
        cluster: Cluster,
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

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        """Yield what is allocated, parents of a clone included, in ascending order.

        The exact listing, object by object: the fast one (whole_object, from the object map) has been
        wrong more than once (Ceph trackers 42248, 53784, 53885, 61616).
        """

        def allocated(slab: Extent) -> Sequence[Extent]:
            found: list[Extent] = []

            def note(offset: int, length: int, exists: bool) -> None:
                if exists:
                    found.append(Extent(offset, length))

            with self._cluster.errors("cannot list what is allocated in", self._image):
                self._opened.diff_iterate(slab.offset, slab.length, None, note)
            return sorted(found, key=attrgetter("offset"))

        return _listed_ahead(within or Extent(0, self.size), allocated)

    def changes(self, since: str, fast: bool) -> Iterator[Extent]:
        """Yield all that may differ from the older snapshot of this name, in ascending order.

        What was discarded since is among it. `fast`: whole objects, from the object maps where Ceph itself
        does not distrust one of them; see `extents` for why that is not the default.
        """
        whole_objects = fast and self._has_valid_object_maps(since)

        def changed(slab: Extent) -> Sequence[Extent]:
            found: list[Extent] = []

            def note(offset: int, length: int, _exists: bool) -> None:
                found.append(Extent(offset, length))

            with self._cluster.errors(f"cannot list what has changed since {since} in", self._image):
                self._opened.diff_iterate(slab.offset, slab.length, since, note, True, whole_objects)
            return sorted(found, key=attrgetter("offset"))

        return _listed_ahead(Extent(0, self.size), changed)

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
                message = f"{action} image {self._image}: got only {got} bytes"
                raise BackupError(message, "see ceph health detail; the next run tries again")
            return data

        return wait


def _listed_ahead(
    whole: Extent, listed: Callable[[Extent], Sequence[Extent]]
) -> Generator[Extent, None, None]:
    """Yield what is listed of an extent, in slabs; the next are listed while one is worked on.

    A listing asks for each object that there could be.
    """
    end = whole.offset + whole.length
    slabs = [Extent(start, min(EXTENT_SLAB, end - start)) for start in range(whole.offset, end, EXTENT_SLAB)]
    if len(slabs) == 1:
        yield from listed(slabs[0])
        return
    with ThreadPoolExecutor(LISTINGS, thread_name_prefix="listing") as threads:
        coming = deque(threads.submit(listed, slab) for slab in slabs[:LISTINGS])
        for slab in slabs[LISTINGS:]:
            found = coming.popleft().result()
            coming.append(threads.submit(listed, slab))
            yield from found
        for rest in coming:
            yield from rest.result()
