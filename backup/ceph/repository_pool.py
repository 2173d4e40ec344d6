"""A pool, or a namespace of one, that holds restore points as images with snapshots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Callable

import rbd

from ..job_result import Phase
from ..model import ClusterAddress, Extent, Image, Level
from ..system.stop_request import StopRequest
from .cluster import FEATURES, Cluster
from .errors import ClusterError, ImageGone
from .image_creation import create_image
from .image_reader import ImageReader
from .image_removal import ImageRemoval
from .repository_image import RepositoryImage, notes_of, repository_image, snapshots_of
from .retry import CephRetry, Report

# Of the images of a repository: snapshots are made and compared at once with an object map.
REPOSITORY_FEATURES = ("layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten")

STEP = 4 << 20  # bytes that are compared at a time


@dataclass(frozen=True)
class RepositoryAddress:
    """Where a repository is: Ceph's configuration file, the cephx user, the pool and namespace.

    `timeout` limits each operation, `stall_timeout` the retries of those that time out, both in seconds;
    `write_rate` is in bytes per second for each image, 0 for no limit.
    """

    conf_file: str
    user: str
    pool: str
    namespace: str = ""
    timeout: int = 60
    stall_timeout: int = 0
    write_rate: int = 0

    def __str__(self) -> str:
        return f"{self.pool}/{self.namespace}" if self.namespace else self.pool

    def image(self, name: str) -> Image:
        return Image(self.pool, name, self.namespace)


@dataclass(frozen=True)
class ImageState:
    """What an image of the repository has beside its data: snapshots, oldest first, and notes."""

    snapshots: Sequence[str]
    notes: Mapping[str, str]


class RepositoryPool:
    """The images of a repository, over one connection. Threads may share it."""

    def __init__(self, address: RepositoryAddress, cluster: Cluster) -> None:
        self.address = address
        self.cluster = cluster

    def image(self, name: str) -> Image:
        return self.address.image(name)

    def names(self) -> Sequence[str]:
        """List the images. Raises ClusterError, also if there is no such pool."""
        place = self.image("")

        def ask() -> Sequence[str]:
            with self.cluster.errors(f"cannot list the images of {place.place}"):
                return list(rbd.RBD().list(self.cluster.pool_of(place)))

        self._require_pool()
        return self.cluster.retry.call(ask)

    def state(self, name: str) -> ImageState:
        """Return what an image has. Raises ImageGone, ClusterError."""

        def ask() -> ImageState:
            with self.cluster.opened(self.image(name)) as opened:
                return ImageState(snapshots_of(opened), notes_of(opened))

        return self.cluster.retried("cannot open", self.image(name), ask)

    def create(self, name: str, size: int, object_size: int) -> None:
        """Create an image if there is none of this name. Both sizes are in bytes. Raises ClusterError."""
        image = self.image(name)

        def create() -> None:
            rbd.RBD().create(
                self.cluster.pool_of(image),
                name,
                size,
                order=object_size.bit_length() - 1,
                old_format=False,
                features=sum(FEATURES[one] for one in REPOSITORY_FEATURES),
            )

        def create_unless_there() -> None:
            with suppress(rbd.ImageExists):
                create_image(self.cluster, image, create)

        self.cluster.retried("cannot create", image, create_unless_there)

    def remove(self, name: str) -> None:
        """Remove an image without snapshots; success if it is gone. Raises ClusterError, the reason to stop.

        After a stop it may be smaller; the next removal of the restore point removes the rest.
        """
        retry = self.cluster.retry
        removal = ImageRemoval(self.cluster, _Progress(retry.report), StopRequest(), retry.check_stop)
        removal.empty(self.image(name))
        removal.remove(self.image(name))

    def opened(self, name: str) -> AbstractContextManager[RepositoryImage]:
        """Open an image for writing. Raises ImageGone, ClusterError."""
        return repository_image(self.cluster, self.image(name), self.address.write_rate)

    def reader(self, name: str, snapshot: str) -> AbstractContextManager[ImageReader]:
        """Open a snapshot for reading. Raises ClusterError, also if it was removed meanwhile."""
        return self.cluster.reader(self.image(name), snapshot)

    def users(self, name: str) -> Sequence[str]:
        """Return the addresses of the clients that have an image open for writing; none if it is gone."""
        try:
            return self.cluster.watchers(self.image(name))
        except ImageGone:
            return ()

    def changes(self, name: str, since: str, exact: bool) -> Sequence[Extent]:
        """Return where an image may differ from its snapshot `since`; all that it holds if that is "".

        `exact`: ask for each object; otherwise from the object maps, if Ceph considers them valid.
        """
        with self.cluster.head_reader(self.image(name)) as reader:
            found = reader.changes(since, fast=not exact) if since else reader.extents()
            return [extent for extent in found if extent.length]

    def clones(self, name: str, snapshot: str) -> Sequence[str]:
        """Return the clones of a snapshot, as pool/namespace/image; () if it is gone. Raises ClusterError."""

        def ask() -> Sequence[str]:
            with self.cluster.opened(self.image(name), snapshot) as opened:
                return [
                    str(Image(one["pool"], one["image"], one["pool_namespace"]))
                    for one in opened.list_children2()
                ]

        try:
            return self.cluster.retried("cannot list the clones of", self.image(name), ask)
        except ImageGone:
            return ()

    def is_changed(self, name: str, since: str) -> bool:
        """Return whether an image differs from its snapshot `since`, or holds any data if that is "".

        Only what Ceph lists as written is compared: a rollback, or a write of the same bytes, is no change.
        """
        written = self.changes(name, since, exact=False)
        with self.cluster.head_reader(self.image(name)) as head:
            if not since:
                return any(head.start_read(*one)().strip(b"\0") for one in _steps(written, head.size))
            with self.reader(name, since) as before:
                if head.size != before.size:
                    return True
                for step in _steps(written, head.size):
                    now, then = head.start_read(*step), before.start_read(*step)
                    if now() != then():
                        return True
        return False

    def require_usable(self) -> None:
        """Raise ClusterError unless restore points can be saved here."""
        place = self.image("")
        self._require_pool()
        self.cluster.require_namespace(place)
        self.cluster.allow_snapshots(place)

    def _require_pool(self) -> None:
        if not self.cluster.has_pool(self.address.pool):
            message = f"there is no pool {self.address.pool} in the cluster of {self.address.conf_file}"
            raise ClusterError(message, "create it, or see RBD_OUTPUT_POOL and RBD_OUTPUT_CONF")


def _steps(extents: Sequence[Extent], size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of the parts of extents within an image of this size, each at most STEP long."""
    for extent in extents:
        end = min(extent.offset + extent.length, size)
        for start in range(extent.offset, end, STEP):
            yield start, min(STEP, end - start)


class _Progress:
    """Passes the progress of a removal on. Satisfies protocols.Reporter."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def message(self, level: Level, domain: str, text: str) -> None:
        self._report(level, text)

    def phase(self, domain: str, phase: Phase, limit: float = math.inf) -> None:
        pass

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        pass


@contextmanager
def repository_pool(
    address: RepositoryAddress, check_stop: Callable[[], None], report: Report = lambda _level, _text: None
) -> Iterator[RepositoryPool]:
    """Connect to a repository for the block. Raises ClusterError."""
    retry = CephRetry(address.stall_timeout, check_stop, report)
    at = ClusterAddress(user=address.user)
    with Cluster(at, "", address.conf_file, address.timeout, retry=retry) as cluster:
        yield RepositoryPool(address, cluster)
