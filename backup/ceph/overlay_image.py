"""Images with overlays: what a guest writes while its disk is restored below it."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from functools import partial
from typing import Callable

import rbd

from ..errors import TransientError
from ..model import Image
from ..protocols import Reporter
from ..system.stop_request import StopRequest
from .cluster import Cluster
from .errors import ClusterError, ImageGone
from .image_creation import create_image
from .image_lock import refused_as_changes_are
from .image_removal import ImageRemoval

OBJECT_BITS = 22  # of objects of 4 MiB
# With the lock, a client that was taken for dead cannot write any more once another one has the image.
FEATURES = (
    rbd.RBD_FEATURE_LAYERING
    | rbd.RBD_FEATURE_EXCLUSIVE_LOCK
    | rbd.RBD_FEATURE_OBJECT_MAP
    | rbd.RBD_FEATURE_FAST_DIFF
    | rbd.RBD_FEATURE_DEEP_FLATTEN
)
# Ceph forgets a client that died, such as a QEMU, after 30 seconds (osd_client_watch_timeout).
FORGET_LIMIT = 40.0  # seconds
POLL = 0.5


def create_overlay(cluster: Cluster, image: Image, content: bytes, data_pool: str) -> None:
    """Create an image with this content; it grows as QEMU writes. `data_pool`: "" for its own pool.

    Raises ClusterError, also if it exists.
    """
    create = partial(
        rbd.RBD().create,
        cluster.pool_of(image),
        image.name,
        len(content),
        order=OBJECT_BITS,
        old_format=False,
        features=FEATURES,
        data_pool=data_pool if data_pool and cluster.has_pool(data_pool) else None,
    )
    with cluster.errors("cannot create", image):
        create_image(cluster, image, create)
        with cluster.opened(image, read_only=False) as opened:

            def write() -> None:
                with refused_as_changes_are():
                    opened.write(content, 0)
                    opened.flush()

            cluster.changed("cannot write", image, opened, write)


def image_id(cluster: Cluster, image: Image) -> str:
    """Return the id of an image, "" if there is none. Raises ClusterError."""

    def found() -> str:
        with cluster.opened(image) as opened:
            return str(opened.id())

    try:
        return cluster.retried("cannot open", image, found)
    except ImageGone:
        return ""


def users_of(cluster: Cluster, image: Image) -> Sequence[str]:
    """Return the addresses of the clients that have an image open, () if there is none."""
    try:
        return cluster.watchers(image)
    except ImageGone:
        return ()


def unused(cluster: Cluster, images: Sequence[Image], wait: Callable[[], None]) -> Sequence[str]:
    """Wait until no dead client has one of these images open; return those that still have, as texts.

    `wait` is called again and again meanwhile; it may raise.
    """
    deadline = time.monotonic() + FORGET_LIMIT
    while used := [
        f"{image} at {', '.join(found)}" for image in images if (found := users_of(cluster, image))
    ]:
        if time.monotonic() > deadline:
            break
        wait()
        time.sleep(POLL)
    return used


def remove_overlay(cluster: Cluster, image: Image, reporter: Reporter, stop: StopRequest) -> None:
    """Remove an image as soon as no dead client has it open; one that is gone counts as success.

    Raises ClusterError.
    """
    deadline = time.monotonic() + FORGET_LIMIT
    while True:
        try:
            return ImageRemoval(cluster, reporter, stop).remove(image)
        except ClusterError as error:
            if error.number != errno.EBUSY:
                raise
            if time.monotonic() > deadline:
                hint = f"the same command removes it later; who uses it? rbd status {image}"
                raise TransientError(error.message, hint) from error
        stop.check()
        time.sleep(POLL)
