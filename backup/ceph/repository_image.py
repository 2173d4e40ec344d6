"""An image of an RBD repository, open for writing: its data, its snapshots, and notes beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Callable

import rbd

from ..model import Image
from ..protocols import WrittenBytes
from .cluster import Cluster
from .connection import Result
from .errors import SnapshotInUse
from .image_writer import ImageWriter
from .new_image import WRITE_FLAGS
from .read_rate import ReadRate


class RepositoryImage(ImageWriter):
    """An image of an RBD repository. A context manager, as ImageWriter.

    Threads may write; all other calls are of one thread at a time.
    """

    def __init__(self, cluster: Cluster, image: Image, opened: Any, write_rate: int) -> None:
        """`opened` is the rbd.Image, `write_rate` in bytes per second, 0 for no limit."""
        super().__init__(cluster, image, opened, WRITE_FLAGS)
        self._rate = ReadRate(write_rate)

    def __enter__(self) -> RepositoryImage:
        return self

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        """Start a write, as ImageWriter does, after a wait if there is a limit of the rate."""
        self._rate.wait(len(data), self.check)
        return super().start_write(offset, data)

    @property
    def size(self) -> int:
        return int(self._opened.size())

    def resize(self, size: int) -> None:
        """Change the size, in bytes; what it loses reads as zeros if it grows again. Raises ClusterError."""
        if size != self.size:
            self._retried(f"cannot resize to {size} bytes", partial(self._opened.resize, size))

    def snapshots(self) -> Sequence[str]:
        """Return the names of its snapshots, oldest first."""
        return self._retried("cannot list the snapshots of", partial(snapshots_of, self._opened))

    def notes(self) -> Mapping[str, str]:
        return self._retried("cannot read the metadata of", partial(notes_of, self._opened))

    def note(self, key: str, value: str) -> None:
        """Set a note, which `rbd image-meta ls` shows. Raises ClusterError."""
        self._retried(f"cannot set {key} of", partial(self._opened.metadata_set, key, value))

    def remove_note(self, key: str) -> None:
        def remove() -> None:
            with suppress(KeyError):  # it is gone
                self._opened.metadata_remove(key)

        self._retried(f"cannot remove {key} of", remove)

    def make_snapshot(self, name: str) -> None:
        """Make a snapshot, and protect it from `rbd snap rm` and `rbd snap purge`. Raises ClusterError."""

        def make() -> None:
            # An attempt that timed out may have begun it. It then may have no object map, without which it
            # cannot be opened, and librbd may have given its id back to the cluster, which removes its data;
            # making it again would succeed and change nothing (EEXIST is left out in Operations.cc).
            self._refresh()
            with suppress(rbd.ImageNotFound):
                self._remove_snapshot(name)
            self._opened.create_snap(name)

        self._retried(f"cannot make snapshot {name} of", make)
        self.protect_snapshot(name)

    def protect_snapshot(self, name: str) -> None:
        """Protect a snapshot that may not be protected yet. Raises ClusterError."""

        def protect() -> None:
            if not self._opened.is_protected_snap(name):
                self._opened.protect_snap(name)

        self._retried(f"cannot protect snapshot {name} of", protect)

    def remove_snapshot(self, name: str) -> None:
        """Remove a snapshot; success if it is gone. Raises SnapshotInUse if it has clones, ClusterError."""

        def remove() -> None:
            with suppress(rbd.ImageNotFound):
                try:
                    self._remove_snapshot(name)
                except rbd.ImageBusy as error:
                    message = f"snapshot {name} of image {self._image} has clones"
                    hint = f"rbd children {self._image}@{name}; rbd flatten makes one independent"
                    raise SnapshotInUse(message, hint) from error

        self._retried(f"cannot remove snapshot {name} of", remove)

    def _refresh(self) -> None:
        """Have librbd read the image's header anew, which a request that timed out may have changed.

        It takes an empty message for one of a changed header (librbd/ImageWatcher.cc, handle_notify).
        """
        self._cluster.pool_of(self._image).notify(f"rbd_header.{self._opened.id()}")

    def _remove_snapshot(self, name: str) -> None:
        if self._opened.is_protected_snap(name):
            self._opened.unprotect_snap(name)
        self._opened.remove_snap(name)

    def _retried(self, action: str, call: Callable[[], Result]) -> Result:
        return self._cluster.changed(action, self._image, self._opened, call)


@contextmanager
def repository_image(cluster: Cluster, image: Image, write_rate: int = 0) -> Iterator[RepositoryImage]:
    """Open an image for writing during the block. Raises ClusterError, ImageGone."""
    action = "cannot open or close"
    opening = cluster.retried(action, image, partial(cluster.opened, image, read_only=False))
    with (
        cluster.errors(action, image),
        opening as opened,
        RepositoryImage(cluster, image, opened, write_rate) as written,
    ):
        cluster.report_limits(image, opened, "write")
        yield written


def snapshots_of(opened: Any) -> Sequence[str]:
    """Return the names of an open image's snapshots, oldest first: no groups', mirrors' or removed ones."""
    users = [one for one in opened.list_snaps() if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER]
    return [one["name"] for one in sorted(users, key=lambda one: int(one["id"]))]


def notes_of(opened: Any) -> Mapping[str, str]:
    return dict(opened.metadata_list())
