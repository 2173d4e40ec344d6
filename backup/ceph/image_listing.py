"""Lists all images of a pool, including those in the trash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import rbd

from ..model import Image
from .connection import Connection


@dataclass(frozen=True)
class ListedImage:
    """An image of a pool. One in the trash has no name that could be opened; its id can be."""

    image: Image
    in_trash: bool = False


class ImageListing(Connection):
    """A connection that lists images."""

    def pool_names(self) -> Sequence[str]:
        """List the cluster's pools. Raises ClusterError."""
        with self.errors("cannot list the pools"):
            return list(self._rados.list_pools())

    def namespaces(self, pool: str) -> Sequence[str]:
        """List a pool's namespaces, "" for the default one first. Raises ClusterError."""
        with self.errors(f"cannot list the namespaces of pool {pool}"):
            return ["", *rbd.RBD().namespace_list(self.pool_of(Image(pool, "")))]

    def images_in(self, pool: str, namespace: str) -> Sequence[ListedImage]:
        """List the images of a pool and namespace with their ids, the trash last. Raises ClusterError."""
        place = Image(pool, "", namespace)
        with self.errors(f"cannot list the images of {place.place}"):
            opened, client = self.pool_of(place), rbd.RBD()
            images = [
                ListedImage(Image(pool, one["name"], namespace, one["id"])) for one in client.list2(opened)
            ]
            return images + [
                ListedImage(Image(pool, one["name"], namespace, one["id"]), in_trash=True)
                for one in client.trash_list(opened)
                if one["source"] != "MIGRATION"  # belongs to an image that is being migrated
            ]
