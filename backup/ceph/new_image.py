"""Restores an image: creates it under a temporary name, and renames it when all its data is written."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Callable

import rados
import rbd

from ..errors import BackupError, TransientError
from ..model import Image, Level
from ..protocols import Reporter
from ..stored import Layout, SavedImage
from ..system.stop_request import StopRequest
from ..text import size_text
from .cluster import FEATURES, Cluster
from .errors import ClusterError, ImageGone
from .image_creation import create_image
from .image_removal import ImageRemoval
from .image_renaming import rename_image
from .image_writer import ImageWriter

RESTORING = ".virt-rbd-backup.restoring"  # suffix of an image that is being filled
REPLACED = ".virt-rbd-backup.replaced"  # suffix of an image that a restored one replaces

WRITE_FLAGS = rados.LIBRADOS_OP_FLAG_FADVISE_SEQUENTIAL | rados.LIBRADOS_OP_FLAG_FADVISE_NOCACHE

# Ceph forgets a client that died, such as the QEMU of a drill, after 30 seconds (osd_client_watch_timeout).
REMOVE_LIMIT = 40.0  # seconds to retry the removal of an image that such a client had open
REMOVE_POLL = 1.0  # seconds between two attempts

# Set by separate options (rbd_image_options), and refused in the mask of features.
IMPLIED = ("striping", "data-pool")


class NewImage:
    """An image that is being restored into a cluster. Satisfies protocols.RestoreTarget.

    The process that has the image open under its temporary name owns it, until it is committed or discarded.
    """

    def __init__(
        self,
        cluster: Cluster,
        image: Image,
        saved: SavedImage,
        force: bool,
        reporter: Reporter,
        stop: StopRequest | None = None,
    ) -> None:
        """`force`: replace an existing image that is not in use. `stop` ends a long removal."""
        self.cluster = cluster
        self.image = image
        self._saved = saved
        self._force = force
        self._reporter = reporter
        self._stop = stop or StopRequest()
        self._removal = ImageRemoval(cluster, reporter, self._stop)
        self.filling = replace(image, name=image.name + RESTORING)
        self._replaced = replaced_by(image)
        self._id = ""  # of the created image
        self._opened: Any = None
        self._undo = ExitStack()

    def __str__(self) -> str:
        return str(self.image)

    @property
    def id(self) -> str:
        """The id of the image, once it is open."""
        return self._id

    def require_free(self) -> None:
        """Raise BackupError unless the image can be created; remove an interrupted restore's leftover."""
        self._require_no_other()
        if self._exists(self._replaced):
            message = (
                f"image {self._replaced} exists: a restore was interrupted while it replaced {self.image}"
            )
            old = self._replaced
            hint = f"rename it back: rbd rename {old} {self.image}; or remove it: rbd rm {old}"
            raise BackupError(message, hint)
        if self._exists(self.filling):
            self._wait_for_killed()
            self._remove(self.filling)
            text = f"removed {self.filling}, left by an interrupted restore"
            self._reporter.message(Level.WARNING, "", text)

    def _wait_for_killed(self) -> None:
        """Wait until nobody has the image open that is being filled. Raises BackupError."""
        deadline, reported = time.monotonic() + REMOVE_LIMIT, False
        while self.cluster.watchers(self.filling):
            if time.monotonic() > deadline:
                raise self._under_way()
            if not reported:
                text = f"waiting until Ceph forgets who has {self.filling} open, such as a killed restore"
                self._reporter.message(Level.INFO, "", text)
                reported = True
            self._stop.check()
            time.sleep(REMOVE_POLL)

    @contextmanager
    def opened(self, _check_stop: Callable[[], None]) -> Iterator[ImageWriter]:
        """Create the image under its temporary name, and open it for writing. Raises ClusterError."""
        image, cluster = self.filling, self.cluster
        self._create(image)
        self._undo.callback(self._remove_own)
        with cluster.errors("cannot open or flush", image):
            opened = cluster.opened(image, read_only=False)
            self._opened = opened
            self._undo.callback(self._close)
            self._id = opened.id()
            # another restore may have taken it for a leftover before it was open
            if len(cluster.watchers(image)) > 1:
                raise self._under_way()
            cluster.report_limits(self.image, opened, "write")
            with ImageWriter(cluster, image, opened, WRITE_FLAGS) as writer:
                yield writer
            writer.flush()

    def commit(self) -> None:
        """Give the image its final name. Raises BackupError if that has been taken meanwhile."""
        self._require_no_other()
        if not self._is_own(self.filling):
            message = f"{self.filling} is no longer the image that was filled"
            raise BackupError(
                message,
                "another restore removed it, perhaps while this node had no connection to the cluster",
            )
        # A renaming that fails may have been carried out nevertheless, so it can be undone before it begins.
        if self._exists(self.image):
            self._undo.callback(undo_replacement, self.cluster, self.image)
            rename_image(self.cluster, self.image, self._replaced)
        self._undo.callback(self._rename_back)
        rename_image(self.cluster, self.filling, self.image)

    def keep(self) -> None:
        """Let nothing be undone any more; what this one replaced stays for now. Raises ClusterError."""
        self._undo.pop_all()
        self._close()

    def remove_replaced(self) -> None:
        """Remove the image that this one replaced; nothing can be undone any more."""
        old = self._replaced
        try:
            self.keep()
            if self._exists(old):
                if not self.cluster.watchers(old):  # otherwise it cannot be removed
                    # the next restore removes what may be left of it
                    rename_image(self.cluster, old, self.filling)
                    old = self.filling
                self._remove(old)
        except BackupError as error:  # the restore itself is complete
            text = f"{self.image} is restored, but {old}, which it replaced, is left: {error}; rbd rm {old}"
            self._reporter.message(Level.WARNING, "", text)

    def discard(self) -> None:
        """Remove the image, and rename a replaced one back; success if it is already gone."""
        self._undo.close()

    def _require_no_other(self) -> None:
        """Raise BackupError if an image of this name exists that must not be replaced."""
        image = self.image
        if not self._exists(image):
            return
        if not self._force:
            hint = (
                "restore to another name with --to-pool, --to-image or --suffix, or replace it with --force"
            )
            raise BackupError(f"image {image} exists", hint)
        if users := self.cluster.watchers(image):
            message = f"image {image} is in use: it is open at {', '.join(users)}"
            raise BackupError(message, f"shut off the domain that uses it; see rbd status {image}")
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

    def _is_own(self, image: Image) -> bool:
        """Return whether the image with this name is the one created here."""

        def is_own() -> bool:
            try:
                with self.cluster.opened(image) as opened:
                    return self._id in ("", opened.id())
            except rbd.ImageNotFound:
                return False

        return self.cluster.retried("cannot open", image, is_own)

    def _under_way(self) -> BackupError:
        message = f"another restore of {self.image} is running, or was killed less than 30 s ago"
        return TransientError(message, "wait for it, or try again in a minute")

    def _create(self, image: Image) -> None:
        layout, pool = self._saved.layout, self.cluster.pool_of(image)
        mask = sum(FEATURES[name] for name in layout.features if name not in IMPLIED)
        fancy = "striping" in layout.features
        create = partial(
            rbd.RBD().create,
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
        with self.cluster.errors("cannot create", image):
            try:
                create_image(self.cluster, image, create)
            except rbd.ImageExists as error:
                raise self._under_way() from error

    def _data_pool(self, layout: Layout) -> str | None:
        if not layout.data_pool:
            return None
        if self.cluster.has_pool(layout.data_pool):
            return layout.data_pool
        text = (
            f"{self.image}: there is no data pool {layout.data_pool} here; its data is in {self.image.pool}"
        )
        self._reporter.message(Level.WARNING, "", text)
        return None

    def _rename_back(self) -> None:
        if self._is_own(self.image):
            rename_image(self.cluster, self.image, self.filling)

    def _close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            with self.cluster.errors("cannot close", self.image):
                opened.close()

    def _remove_own(self) -> None:
        """Remove the created image as soon as no dead client has it open any more."""
        if not self._is_own(self.filling):
            return
        deadline = time.monotonic() + REMOVE_LIMIT
        while True:
            try:
                self._remove(self.filling)
            except ClusterError as error:
                if error.number != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(REMOVE_POLL)
            else:
                return

    def _remove(self, image: Image) -> None:
        if image == self.filling:
            self._removal.empty(image)
        self._removal.remove(image)


def replaced_by(image: Image) -> Image:
    """Return the name that an image has while another one replaces it."""
    return replace(image, name=image.name + REPLACED)


def undo_replacement(cluster: Cluster, image: Image) -> None:
    """Give an image its name again if it was about to be replaced; success if it has it, or another one has.

    Raises ClusterError.
    """
    try:
        rename_image(cluster, replaced_by(image), image)
    except ClusterError as error:
        if error.number not in (errno.ENOENT, errno.EEXIST):
            raise


def require_room(cluster: Cluster, pool: str, data_bytes: int) -> None:
    """Raise BackupError if the pool does not exist, or has no room for so many bytes.

    Without a ceph-mgr the monitors do not know the room; then it is not checked.
    """
    if not cluster.has_pool(pool):
        message = f"there is no pool {pool} in the cluster that CEPH_CONF leads to"
        raise BackupError(message, "create it, or use another one: --to-pool POOL")
    pools = {one["name"]: one["stats"] for one in cluster.ask("df")["pools"]}
    room = pools[pool]["max_avail"] if pool in pools else data_bytes
    if room < data_bytes:
        message = f"pool {pool} has room for {size_text(room)}, the images hold {size_text(data_bytes)}"
        raise BackupError(message, "see ceph df; --to-pool POOL restores into another pool")
