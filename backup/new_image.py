"""Images that are restored: made under a temporary name, filled, and renamed when every byte is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import rados
import rbd

from .cluster import FEATURES, Cluster, ImageGone
from .errors import BackupError
from .image_writer import ImageWriter
from .model import Image, Layout, Level, SavedImage
from .protocols import Reporter
from .units import size_text

RESTORING = ".virt-rbd-backup.restoring"  # end of a name under which an image is filled
REPLACED = ".virt-rbd-backup.replaced"  # and of one whose place a restored image takes

WRITE_FLAGS = rados.LIBRADOS_OP_FLAG_FADVISE_SEQUENTIAL | rados.LIBRADOS_OP_FLAG_FADVISE_NOCACHE

# Implied by options of their own (rbd_image_options), and refused in a mask.
IMPLIED = ("striping", "data-pool")


class NewImage:
    """A saved image on its way into a cluster. Satisfies protocols.RestoreTarget."""

    def __init__(self, cluster: Cluster, image: Image, saved: SavedImage, force: bool, reporter: Reporter):
        """`force`: take the place of an image that nobody uses."""
        self.cluster = cluster
        self.image = image
        self._saved = saved
        self._force = force
        self._reporter = reporter
        self.filling = replace(image, name=image.name + RESTORING)
        self._replaced = replace(image, name=image.name + REPLACED)
        self._begun = False

    def __str__(self) -> str:
        return str(self.image)

    def require_free(self) -> None:
        """Raise BackupError unless the image may be made here; remove what a killed restore left of it."""
        self._require_no_other()
        if self._exists(self._replaced):
            message = f"there is an image {self._replaced}: a restore was killed as it replaced {self.image}"
            hint = f"rename it back, or remove it: rbd rename {self._replaced} {self.image}"
            raise BackupError(message, hint)
        if self._exists(self.filling):
            if self.cluster.watchers(self.filling):
                raise BackupError(f"another restore of {self.image} is under way")
            self._remove(self.filling)
            text = f"removed {self.filling} that a killed restore left"
            self._reporter.message(Level.WARNING, "", text)

    @contextmanager
    def opened(self) -> Iterator[ImageWriter]:
        """Make the image under its temporary name, and open it for writing. Raises ClusterError."""
        self._begun = True
        self._create(self.filling)
        image, cluster = self.filling, self.cluster
        with cluster.errors("cannot open or close", image), cluster.opened(image, read_only=False) as opened:
            yield ImageWriter(cluster, image, opened, WRITE_FLAGS)
            opened.flush()

    def commit(self) -> None:
        """Give the image its name. Raises BackupError if it is another's by now."""
        self._require_no_other()
        replacing = self._exists(self.image)
        if replacing:
            self._rename(self.image, self._replaced)
        try:
            self._rename(self.filling, self.image)
        except BaseException:
            if replacing:
                self._rename(self._replaced, self.image)
            raise
        self._begun = False
        if replacing:
            self._remove(self._replaced)

    def discard(self) -> None:
        """Remove what was made, unless it was committed; already gone counts as success."""
        if self._begun:
            self._remove(self.filling)

    def _require_no_other(self) -> None:
        """Raise BackupError if an image is in the way that must not be replaced."""
        image = self.image
        if not self._exists(image):
            return
        if not self._force:
            hint = (
                "--to-pool or --to-image restores beside it, --suffix under another name, --force replaces it"
            )
            raise BackupError(f"image {image} exists", hint)
        if users := self.cluster.watchers(image):
            message = f"image {image} is in use ({users} clients have it open)"
            raise BackupError(message, f"shut the domain off that runs on it; see rbd status {image}")
        if names := self.cluster.snapshot_names(image):
            message = f"image {image} has snapshots ({', '.join(names)}), which would be lost"
            raise BackupError(
                message, f"rename it: rbd rename {image} {image}.old; or rbd snap purge {image}"
            )

    def _exists(self, image: Image) -> bool:
        try:
            self.cluster.image_size(image)
        except ImageGone:
            return False
        return True

    def _create(self, image: Image) -> None:
        layout, pool = self._saved.layout, self.cluster.pool_of(image)
        mask = sum(FEATURES[name] for name in layout.features if name not in IMPLIED)
        fancy = "striping" in layout.features
        with self.cluster.errors("cannot create", image):
            rbd.RBD().create(
                pool,
                image.name,
                self._saved.size,
                order=layout.object_size.bit_length() - 1,
                old_format=False,
                features=mask,
                stripe_unit=layout.stripe_unit if fancy else None,
                stripe_count=layout.stripe_count if fancy else None,
                data_pool=self._data_pool(layout),
            )

    def _data_pool(self, layout: Layout) -> str | None:
        if not layout.data_pool:
            return None
        if self.cluster.has_pool(layout.data_pool):
            return layout.data_pool
        text = (
            f"{self.image}: there is no data pool {layout.data_pool} here, its data go to {self.image.pool}"
        )
        self._reporter.message(Level.WARNING, "", text)
        return None

    def _rename(self, image: Image, to: Image) -> None:
        with self.cluster.errors(f"cannot rename to {to} the", image):
            rbd.RBD().rename(self.cluster.pool_of(image), image.name, to.name)

    def _remove(self, image: Image) -> None:
        with self.cluster.errors("cannot remove", image):
            try:
                rbd.RBD().remove(self.cluster.pool_of(image), image.name)
            except rbd.ImageNotFound:
                return


def require_room(cluster: Cluster, pool: str, data_bytes: int) -> None:
    """Raise BackupError if the pool does not exist, or could not take so many bytes.

    How much it can take is not known where no ceph-mgr has told the monitors.
    """
    if not cluster.has_pool(pool):
        message = f"there is no pool {pool} in the cluster that CEPH_CONF leads to"
        raise BackupError(message, "make it, or name another: --to-pool POOL")
    pools = {one["name"]: one["stats"] for one in cluster.ask("df")["pools"]}
    room = pools[pool]["max_avail"] if pool in pools else data_bytes
    if room < data_bytes:
        message = f"pool {pool} has room for {size_text(room)}, the images hold {size_text(data_bytes)}"
        raise BackupError(message, "see ceph df; --to-pool POOL restores into another pool")
