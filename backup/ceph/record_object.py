"""A small object beside an image, with a record of what is under way with that image."""

from __future__ import annotations

from contextlib import suppress

import rados

from ..errors import TransientError
from ..model import Image
from .cluster import NOT_EQUAL, THOUGH_FULL, Cluster
from .errors import LockLost

LIMIT = 1 << 20  # bytes


def create_record(cluster: Cluster, image: Image, name: str, content: bytes) -> None:
    """Create the object `name`. Raises TransientError if it exists, ClusterError."""

    def create() -> None:
        try:
            with rados.WriteOpCtx() as operation:
                operation.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
                operation.write_full(content)
                cluster.pool_of(image).operate_write_op(operation, name, flags=THOUGH_FULL)
        except rados.ObjectExists as error:
            if read_record(cluster, image, name) != content:  # else an answer to this was lost
                raise TransientError(f"another restore of {image} has just begun", "wait for it") from error

    cluster.retried(f"cannot create the object {name} beside", image, create)


def write_record(cluster: Cluster, image: Image, name: str, content: bytes, before: bytes) -> None:
    """Replace the object's content in one step, if it is still `before`. Raises LockLost, ClusterError."""

    def write() -> None:
        try:
            with rados.WriteOpCtx() as operation:
                operation.cmpext(before)
                operation.write_full(content)
                cluster.pool_of(image).operate_write_op(operation, name, flags=THOUGH_FULL)
        except rados.Error as error:
            differs = isinstance(error, rados.ObjectNotFound) or abs(error.errno or 0) >= NOT_EQUAL
            if not differs:
                raise
            if read_record(cluster, image, name) != content:  # else an answer to this was lost
                raise written_by_another(image, name) from error

    cluster.retried(f"cannot write the object {name} beside", image, write)


def written_by_another(image: Image, name: str) -> LockLost:
    """Return the error of a record that another process has written since."""
    message = f"another process has changed the object {name} beside image {image} since"
    return LockLost(message, "this node may have had no connection to the cluster for a while")


def read_record(cluster: Cluster, image: Image, name: str) -> bytes | None:
    """Return the object's content, None if there is none. Raises ClusterError."""

    def read() -> bytes | None:
        with suppress(rados.ObjectNotFound):
            return bytes(cluster.pool_of(image).read(name, LIMIT))
        return None

    return cluster.retried(f"cannot read the object {name} beside", image, read)


def remove_record(cluster: Cluster, image: Image, name: str) -> None:
    """Remove the object; success if it is gone. Raises ClusterError."""

    def remove() -> None:
        with suppress(rados.ObjectNotFound):
            cluster.pool_of(image).remove_object(name)

    cluster.retried(f"cannot remove the object {name} beside", image, remove)
