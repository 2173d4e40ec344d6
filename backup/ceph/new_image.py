"""Images that are restored: made under a temporary name, filled, and renamed when every byte is there."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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
from .image_writer import ImageWriter

RESTORING = ".virt-rbd-backup.restoring"  # end of a name under which an image is filled
REPLACED = ".virt-rbd-backup.replaced"  # and of one whose place a restored image takes

WRITE_FLAGS = rados.LIBRADOS_OP_FLAG_FADVISE_SEQUENTIAL | rados.LIBRADOS_OP_FLAG_FADVISE_NOCACHE

# Ceph forgets a client that died, such as the QEMU of a drill, after 30 seconds (osd_client_watch_timeout).
REMOVE_LIMIT = 40.0  # seconds for an image that such a client had open
REMOVE_POLL = 1.0  # seconds between two attempts

# Implied by options of their own (rbd_image_options), and refused in a mask.
IMPLIED = ("striping", "data-pool")


EMPTIED_AT_A_TIME = 8192  # objects of an image that is removed; between two steps a stop is heard
TIDY_LIMIT = 150.0  # seconds after a signal that a removal may take; systemd kills after 300
REPORT_INTERVAL = 30.0  # seconds between two messages on how far a removal is


class NewImage:
    """A saved image on its way into a cluster. Satisfies protocols.RestoreTarget.

    Who has an image open under the temporary name owns it: it stays open until it is committed or discarded.
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
        """`force`: take the place of an image that nobody uses. `stop` ends a long removal."""
        self.cluster = cluster
        self.image = image
        self._saved = saved
        self._force = force
        self._reporter = reporter
        self._stop = stop or StopRequest()
        self.filling = replace(image, name=image.name + RESTORING)
        self._replaced = replace(image, name=image.name + REPLACED)
        self._id = ""  # of the image that was made
        self._opened: Any = None
        self._undo = ExitStack()

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
                raise self._under_way()
            self._remove(self.filling)
            text = f"removed {self.filling} that a killed restore left"
            self._reporter.message(Level.WARNING, "", text)

    @contextmanager
    def opened(self, _check_stop: Callable[[], None]) -> Iterator[ImageWriter]:
        """Make the image under its temporary name, and open it for writing. Raises ClusterError."""
        image, cluster = self.filling, self.cluster
        self._create(image)
        self._undo.callback(self._remove_own)
        with cluster.errors("cannot open or flush", image):
            opened = cluster.opened(image, read_only=False)
            self._opened = opened
            self._undo.callback(self._close)
            self._id = opened.id()
            if cluster.watchers(image) > 1:  # another restore took it for a leftover before it was open
                raise self._under_way()
            with ImageWriter(cluster, image, opened, WRITE_FLAGS) as writer:
                yield writer
            opened.flush()

    def commit(self) -> None:
        """Give the image its name. Raises BackupError if it is another's by now."""
        self._require_no_other()
        if not self._is_own(self.filling):
            message = f"{self.filling} is no longer the image that was filled"
            raise BackupError(message, "was this node cut off from the cluster? another restore removed it")
        if self._exists(self.image):
            self._rename(self.image, self._replaced)
            self._undo.callback(self._rename, self._replaced, self.image)
        self._rename(self.filling, self.image)
        self._undo.callback(self._rename_back)

    def remove_replaced(self) -> None:
        """Remove what the image has taken the place of; nothing of it is undone from now on."""
        self._undo.pop_all()
        try:
            self._close()
            if self._exists(self._replaced):
                self._remove(self._replaced)
        except BackupError as error:  # the image is there, and has its name
            text = f"{self.image} is restored, but {error}; what it was before: rbd rm {self._replaced}"
            self._reporter.message(Level.WARNING, "", text)

    def discard(self) -> None:
        """Remove what was made, and give what was there its name back; already gone counts as success."""
        self._undo.close()

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

    def _is_own(self, image: Image) -> bool:
        """Tell whether what has this name is what was made here."""
        with self.cluster.errors("cannot open", image):
            try:
                with self.cluster.opened(image) as opened:
                    return self._id in ("", opened.id())
            except rbd.ImageNotFound:
                return False

    def _under_way(self) -> BackupError:
        message = f"another restore of {self.image} is under way, or was killed within the last half minute"
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
                create()
            except rbd.ImageExists as error:
                raise self._under_way() from error

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

    def _rename_back(self) -> None:
        if self._is_own(self.image):
            self._rename(self.image, self.filling)

    def _close(self) -> None:
        with self.cluster.errors("cannot close", self.image):
            self._opened.close()

    def _remove_own(self) -> None:
        """Remove what was made, as soon as no dead client has it open any more."""
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
        """Remove an image, object after object, of which there may be millions."""
        if image == self.filling:
            self._empty(image)
        report = self._progress_of(image)

        def remove() -> None:
            with suppress(rbd.ImageNotFound):
                rbd.RBD().remove(self.cluster.pool_of(image), image.name, on_progress=report)

        self.cluster.retried("cannot remove", image, remove)

    def _empty(self, image: Image) -> None:
        """Shrink what was to be filled, step by step: librbd's own removal can't be interrupted.

        By its id, as another restore may have removed it meanwhile and made one of this name. What is left
        where there is no time for all of it has its name still, by which the next restore knows it.
        """
        try:
            found = self.cluster.identified(image)
        except ImageGone:
            return
        with (
            self.cluster.errors("cannot remove", image),
            self.cluster.opened(found, read_only=False) as opened,
        ):
            if len(list(opened.watchers_list())) > 1:
                return  # somebody else has it open: librbd will refuse to remove it
            size, step = int(opened.size()), EMPTIED_AT_A_TIME * int(opened.stat()["obj_size"])
            report = self._progress_of(image)
            for end in reversed(range(0, size, step)):
                if self._stop.signalled_twice or self._stop.seconds_since_signal > TIDY_LIMIT:
                    message = f"image {image} is removed only in part, {size_text(opened.size())} are left"
                    raise ClusterError(message, f"the next restore to it removes the rest; or rbd rm {image}")
                self.cluster.retried("cannot remove", image, partial(opened.resize, end))
                report(size - end, size)

    def _progress_of(self, image: Image) -> Callable[[int, int], int]:
        """Give what reports how far the removal of an image is, if that takes long."""
        reported = time.monotonic()

        def report(done: int, size: int) -> int:
            nonlocal reported
            if time.monotonic() > reported + REPORT_INTERVAL:
                reported = time.monotonic()
                self._reporter.message(Level.INFO, "", f"removing {image}: {done / max(size, 1):.0%}")
            return 0

        return report


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
