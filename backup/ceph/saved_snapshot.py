"""Finds the snapshot that a saved image was read from, if it still exists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Optional

from ..model import image_named
from ..protocols import SnapshotReader
from ..stored import SavedImage
from .errors import ImageGone

if TYPE_CHECKING:  # verification also runs without Ceph's modules
    from .cluster import Cluster


@contextmanager
def snapshot_of(image: SavedImage, cluster: Optional[Cluster]) -> Iterator[Optional[SnapshotReader]]:
    """Open the snapshot that an image was saved from; None if it no longer exists.

    Raises ClusterError.
    """
    place = image_named(image.image)
    if not cluster or not place or image.source.cluster != cluster.fsid:
        yield None
        return
    found = replace(place, id=image.source.image)
    try:
        names = cluster.snapshot_ids(found)
    except ImageGone:
        names = {}
    name = next((name for name, number in names.items() if number == image.source.snapshot), None)
    if name is None:
        yield None
        return
    with cluster.reader(found, name) as reader:
        yield reader
