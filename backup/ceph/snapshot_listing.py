"""Lists a snapshot's allocated extents, and what has changed since an older snapshot.

Listings are exact, object by object: those that librbd makes from object maps alone (whole_object) have been
wrong more than once (Ceph trackers 42248, 53784, 53885, 61616). The maps only tell where to look: for an
object that they deny, a read gets zeros from librbd without a request (ObjectReadRequest::read_object), so no
listing could make more of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Callable, Optional, TypeVar

from ..model import Extent, Image
from .connection import Connection
from .errors import ClusterError, ImageGone
from .retry import STOP_POLL

# Extents are listed for this many bytes of the image at a time, so that lists stay small for any size.
EXTENT_SLAB = 4 << 30
LISTINGS = 2  # slabs that are listed in parallel
LISTING_THREADS = 16  # for all listings of the image: restic reads several segments at a time
# Where there is nothing for fewer bytes than this, a listing goes on: 32 objects take as long as a call.
GAP = 128 << 20

Result = TypeVar("Result")
# Which parts of the image to look at, None for all of it.
Where = Callable[[], Optional[Sequence[Extent]]]


class SnapshotListing:
    """The listings of one open snapshot. Calls that time out are retried by the cluster's `retry`."""

    def __init__(self, cluster: Connection, image: Image, opened: Any, check: Callable[[], None]) -> None:
        """`opened` is the rbd.Image; `check` raises if listing has to stop."""
        self._cluster = cluster
        self._image = image
        self._opened = opened
        self._check = check
        self._size = int(opened.size())
        self._threads = ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="listing")

    def close(self) -> None:
        """Wait for calls in flight."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def extents(self, within: Extent) -> Generator[Extent, None, None]:
        """Yield the allocated extents, including those of a clone's parents, in ascending order.

        An empty extent marks how far the listing has come, as a large image may have no other for minutes.
        """

        def allocated(slab: Extent) -> Sequence[Extent]:
            with self._cluster.errors("cannot list the extents of", self._image):
                return _listed(self._opened, slab, None, deleted=False)

        return self._listed_ahead(within, allocated, self._existing)

    def changes(self, since: str, fast: bool) -> Generator[Extent, None, None]:
        """Yield the extents that may differ from the older snapshot `since`, in ascending order.

        They include discarded ones, and empty extents as in `extents`. `fast`: whole objects, from the object
        maps if Ceph considers all of them valid. Raises ClusterError at the end if `since` was removed
        meanwhile: of objects that only `since` had, which are discarded now, no change is listed then.
        """
        whole_objects = fast and self._retried(partial(self._maps_are_valid, since))

        def changed(slab: Extent) -> Sequence[Extent]:
            with self._cluster.errors(f"cannot list the changes since {since} of", self._image):
                return _listed(self._opened, slab, since, whole_objects=whole_objects)

        whole = Extent(0, self._size)
        if whole_objects:  # from the maps, which each call loads: one call
            yield from self._listed_ahead(whole, changed, lambda: None, slab_size=max(1, self._size))
        else:
            yield from self._listed_ahead(whole, changed, partial(self._existing, since))
        self._awaited(self._submit(partial(self._require, since)))

    def _require(self, snapshot: str) -> None:
        """Raise ClusterError if the snapshot is gone. The open image does not notice: it has no watch."""
        cluster = self._cluster
        try:
            with cluster.errors("cannot open", self._image), cluster.opened(self._image, snapshot=snapshot):
                pass
        except ImageGone as error:
            message = f"snapshot {snapshot} of image {self._image} was removed while changes were listed"
            hint = "find out which program or person removes foreign snapshots; the next backup reads all"
            raise ClusterError(message, hint) from error

    def _maps_are_valid(self, since: str = "") -> bool:
        """Check the maps of both snapshots, and the image's own, which records all changes."""
        cluster = self._cluster
        with cluster.errors("cannot open", self._image), cluster.opened(self._image) as head:
            if not all(map(cluster.has_valid_object_map, (self._opened, head))):
                return False
            if not since:
                return True
            with cluster.opened(self._image, snapshot=since) as before:
                return cluster.has_valid_object_map(before)

    def _existing(self, since: str = "") -> Optional[Sequence[Extent]]:
        """Return where the object maps have objects, of this snapshot or the older one; None if not valid."""
        if not self._maps_are_valid(since):
            return None
        with self._cluster.errors("cannot list the objects of", self._image):
            found = _listed(self._opened, Extent(0, self._size), None, whole_objects=True, gap=GAP)
            if since:
                with self._cluster.opened(self._image, snapshot=since) as before:
                    size = int(before.size())
                    found += _listed(before, Extent(0, size), None, whole_objects=True, gap=GAP)
        return found

    def _listed_ahead(
        self,
        whole: Extent,
        listed: Callable[[Extent], Sequence[Extent]],
        where: Where,
        slab_size: int | None = None,
    ) -> Generator[Extent, None, None]:
        """Yield the extents in slabs; the next slabs are listed while one is processed.

        A listing requests each object that could exist. `where` is asked if there is more than one slab.
        """
        slab_size = slab_size or EXTENT_SLAB
        parts = None
        if whole.length > slab_size:
            parts = self._awaited(self._submit(where))
        slabs = deque(_slabs(whole, parts, slab_size))
        coming: deque[tuple[Extent, Future[Sequence[Extent]]]] = deque()

        def list_next() -> None:
            if slabs:
                self._check()
                slab = slabs.popleft()
                coming.append((slab, self._submit(partial(listed, slab))))

        try:
            for _ in range(LISTINGS):
                list_next()
            while coming:
                slab, listing = coming.popleft()
                found = self._awaited(listing)
                list_next()
                yield from found
                if coming:
                    yield Extent(slab.offset + slab.length, 0)
        finally:
            for _, listing in coming:
                listing.cancel()

    def _submit(self, call: Callable[[], Result]) -> Future[Result]:
        return self._threads.submit(self._retried, call)

    def _retried(self, call: Callable[[], Result]) -> Result:
        return self._cluster.retry.call(call, self._check)

    def _awaited(self, listing: Future[Result]) -> Result:
        while not wait([listing], STOP_POLL).done:
            self._check()
        return listing.result()


def _listed(
    opened: Any,
    within: Extent,
    since: str | None,
    deleted: bool = True,
    whole_objects: bool = False,
    gap: int = 0,
) -> list[Extent]:
    """List an open snapshot's extents within one, in ascending order and as few as possible.

    Those at most `gap` bytes apart are joined: a large image may have millions.
    """
    found: list[tuple[int, int]] = []  # beginning and end

    def add(offset: int, length: int, exists: bool) -> None:
        if not (exists or deleted):
            return
        if found and 0 <= offset - found[-1][1] <= gap:
            found[-1] = (found[-1][0], offset + length)
        else:
            found.append((offset, offset + length))

    opened.diff_iterate(within.offset, within.length, since, add, True, whole_objects)
    return [Extent(start, end - start) for start, end in sorted(found)]


def _slabs(whole: Extent, parts: Sequence[Extent] | None, size: int) -> Iterator[Extent]:
    """Cut what lies within an extent, or only those parts of it, into slabs of this size at most."""
    end = whole.offset + whole.length
    spans = [(whole.offset, end)] if parts is None else _joined(parts)
    for start, stop in spans:
        for begin in range(max(start, whole.offset), min(stop, end), size):
            yield Extent(begin, min(size, min(stop, end) - begin))


def _joined(parts: Iterable[Extent]) -> list[tuple[int, int]]:
    """Join the parts between which less than GAP lies; return their beginnings and ends in order."""
    joined: list[tuple[int, int]] = []
    for part in sorted(parts, key=lambda one: one.offset):
        end = part.offset + part.length
        if joined and part.offset < joined[-1][1] + GAP:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((part.offset, end))
    return joined
