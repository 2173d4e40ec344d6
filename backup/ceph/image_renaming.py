"""Renames images, also where the answer to an earlier attempt was lost, or only a part of it was carried out.

librbd writes an image's id under the new name, changes its entry in the pool's directory, and removes its id
under the old name (RenameRequest.cc). In between both names lead to the image, and librbd renames it no more.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import rados
import rbd

from ..model import Image
from .cluster import Cluster


def rename_image(cluster: Cluster, image: Image, to: Image) -> None:
    """Give an image another name in its pool, and retry that if it times out. Raises ClusterError."""
    action = f"cannot give the name {to} to"
    identity = cluster.retried(action, image, partial(_id, cluster, image))
    renaming = partial(_rename, cluster, image, to, identity)
    cluster.retried(action, image, renaming)


def _rename(cluster: Cluster, image: Image, to: Image, identity: str) -> None:
    try:
        rbd.RBD().rename(cluster.pool_of(image), image.name, to.name)
    except rbd.ImageNotFound:
        if _id_or_none(cluster, to) != identity:
            raise
    except rbd.ImageExists:
        if not identity or _id_or_none(cluster, to) != identity:
            raise
        _complete(cluster, image, to, identity)


def _complete(cluster: Cluster, image: Image, to: Image, identity: str) -> None:
    """Complete a renaming that was carried out in part. Both names lead to the image; one is removed."""
    pool = cluster.pool_of(image)
    in_directory = {one["id"]: one["name"] for one in rbd.RBD().list2(pool)}
    renamed = in_directory.get(identity) == to.name
    with suppress(rados.ObjectNotFound):
        pool.remove_object(f"rbd_id.{image.name if renamed else to.name}")
    if not renamed:
        rbd.RBD().rename(pool, image.name, to.name)


def _id(cluster: Cluster, image: Image) -> str:
    """Return the id of an image, "" for one of the old format. Raises rbd.ImageNotFound."""
    with cluster.opened(image) as opened:
        return "" if opened.old_format() else str(opened.id())


def _id_or_none(cluster: Cluster, image: Image) -> str | None:
    with suppress(rbd.ImageNotFound):
        return _id(cluster, image)
    return None
