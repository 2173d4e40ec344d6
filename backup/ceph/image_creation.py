"""Creates images, also where a killed process has only begun to create one of the same name.

librbd writes an image's id and its entry in the pool's directory before its header (CreateRequest.cc).
Killed in between, a process leaves a name that cannot be opened, and that no other creation gets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import rados
import rbd

from ..model import Image
from .cluster import Cluster
from .errors import ImageGone

BEGUN_LIMIT = 5.0  # seconds for another process to complete what it has begun
POLL = 0.2


def create_image(cluster: Cluster, image: Image, create: Callable[[], None]) -> None:
    """Create an image of this name by a call of rbd.RBD. Raises rbd.ImageExists, or what the call raises."""
    try:
        create()
    except rbd.ImageExists:
        if not _is_only_begun(cluster, image):
            raise
        _remove(cluster, image)
        create()


def _remove(cluster: Cluster, image: Image) -> None:
    """Remove what has been begun: librbd itself removes what is in the directory."""
    pool = cluster.pool_of(image)
    with suppress(rbd.ImageNotFound):
        rbd.RBD().remove(pool, image.name)
    with suppress(rados.ObjectNotFound):
        pool.remove_object(f"rbd_id.{image.name}")


def _is_only_begun(cluster: Cluster, image: Image) -> bool:
    """Return whether an image whose name is taken cannot be opened, and stays so. Raises ClusterError."""
    deadline = time.monotonic() + BEGUN_LIMIT
    while time.monotonic() < deadline:
        try:
            cluster.image_size(image)
        except ImageGone:
            time.sleep(POLL)
        else:
            return False
    return True
