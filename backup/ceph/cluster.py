"""What is done to a cluster's images and snapshots, and to the lock objects beside them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Any

import rados
import rbd

from ..model import Image
from ..stored import Layout, SnapshotId
from .connection import Connection
from .errors import ClusterError, LockHeld, LockLost, SnapshotInUse
from .image_reader import ImageReader
from .lock_request import lock_request

# Nobody reads these bytes again soon, so the OSD need not keep them in its cache. NOCACHE, other
# than DONTNEED, leaves in the cache what other clients put there (rados.h).
READ_FLAGS = rados.LIBRADOS_OP_FLAG_FADVISE_NOCACHE | rados.LIBRADOS_OP_FLAG_FADVISE_SEQUENTIAL

# What an image may be created with, by the names that `rbd create --image-feature` takes.
FEATURES = {
    "layering": rbd.RBD_FEATURE_LAYERING,
    "striping": rbd.RBD_FEATURE_STRIPINGV2,
    "exclusive-lock": rbd.RBD_FEATURE_EXCLUSIVE_LOCK,
    "object-map": rbd.RBD_FEATURE_OBJECT_MAP,
    "fast-diff": rbd.RBD_FEATURE_FAST_DIFF,
    "deep-flatten": rbd.RBD_FEATURE_DEEP_FLATTEN,
    "journaling": rbd.RBD_FEATURE_JOURNALING,
    "data-pool": rbd.RBD_FEATURE_DATA_POOL,
}

LOCK_NAME = "virt-rbd-backup"


NOT_EQUAL = 4095  # MAX_ERRNO: a comparison within an operation failed, at its first byte


class Claim(Enum):
    """What to do about a lock."""

    TAKE = "take"  # nobody else may have it
    RENEW = "renew"  # renewed, or taken again after it expired if nobody else has had it since


class Cluster(Connection):
    """A cluster's images, snapshots and lock objects, over one connection."""

    def image_size(self, image: Image) -> int:
        """Give the image's size now, in bytes."""
        with self.errors("cannot open", image), self.opened(image) as opened:
            return int(opened.size())

    def identified(self, image: Image) -> Image:
        """Give the image with its id. Raises ClusterError if no snapshot of it would be a backup."""
        with self.errors("cannot open", image), self.opened(image) as opened:
            if opened.features() & rbd.RBD_FEATURE_MIGRATING:
                hint = f"rbd migration commit {image}, once it was executed"
                raise ClusterError(f"image {image} is being migrated", hint)
            mirror = opened.mirror_image_get_info()
            if mirror["state"] == rbd.RBD_MIRROR_IMAGE_ENABLED and not mirror["primary"]:
                message = f"image {image} is a mirror that is not primary"
                raise ClusterError(message, "back it up where it is primary; see rbd mirror image status")
            return image if opened.old_format() else replace(image, id=opened.id())

    def watchers(self, image: Image) -> int:
        """Count the clients, such as a QEMU on this or another node, that have the image open for writing."""
        with self.errors("cannot list the watchers of", image), self.opened(image) as opened:
            return len(list(opened.watchers_list()))

    @contextmanager
    def kept_open(self, image: Image) -> Iterator[None]:
        """Have the image open during the block: `create_snapshot` then is one step. Raises ClusterError."""
        with self.errors("cannot open or close", image), self.opened(image, read_only=False) as opened:
            self._kept_open[image] = opened
            try:
                yield
            finally:
                del self._kept_open[image]

    def create_snapshot(self, image: Image, name: str) -> None:
        with self.errors(f"cannot create snapshot {name} of", image):
            if image in self._kept_open:
                self._kept_open[image].create_snap(name)
                return
            with self.opened(image, read_only=False) as opened:
                opened.create_snap(name)

    def remove_snapshot(self, image: Image, name: str) -> None:
        """Remove it; that it, or the whole image, is already gone counts as success.

        Raises SnapshotInUse for one that somebody has protected or cloned, ClusterError.
        """

        def remove() -> None:
            try:
                with self.opened(image, read_only=False) as opened:
                    opened.remove_snap(name)
            except rbd.ImageNotFound:
                return
            except rbd.ImageBusy as error:
                message = f"cannot remove snapshot {name} of image {image}: it is protected, or has clones"
                hint = f"rbd children {image}@{name}; rbd snap unprotect {image}@{name}"
                raise SnapshotInUse(message, hint, errno.EBUSY) from error

        self.retried(f"cannot remove snapshot {name} of", image, remove)

    def snapshot_ids(self, image: Image) -> dict[str, int]:
        """Give the ids of the image's snapshots by their names."""

        def ids() -> dict[str, int]:
            with self.opened(image) as opened:
                return {snapshot["name"]: snapshot["id"] for snapshot in opened.list_snaps()}

        return self.retried("cannot list the snapshots of", image, ids)

    def snapshot_names(self, image: Image) -> list[str]:
        return list(self.snapshot_ids(image))

    def rename_snapshot(self, image: Image, name: str, new: str) -> None:
        def rename() -> None:
            with self.opened(image, read_only=False) as opened:
                names = {snapshot["name"] for snapshot in opened.list_snaps()}
                if new not in names or name in names:  # or it was renamed by an attempt that timed out
                    opened.rename_snap(name, new)

        self.retried(f"cannot rename snapshot {name} of", image, rename)

    @contextmanager
    def reader(self, image: Image, snapshot: str) -> Iterator[ImageReader]:
        """Open a snapshot for reading. Raises ClusterError too if it was removed meanwhile.

        What is read of a snapshot that is being removed reads as zeros, without an error.
        """
        action = f"cannot open or close snapshot {snapshot} of"
        opening = self.retried(action, image, partial(self.opened, image, snapshot=snapshot))
        with self.errors(action, image), opening as opened:
            number = opened.snap_get_id(snapshot)
            source = SnapshotId(self.fsid, opened.id() if not opened.old_format() else image.name, number)
            with ImageReader(self, image, opened, self._layout(opened), READ_FLAGS, source) as reader:
                yield reader
        if snapshot not in self.snapshot_names(image):
            message = f"snapshot {snapshot} of image {image} was removed while it was read"
            raise ClusterError(message, "who removes snapshots that are not theirs?")

    @contextmanager
    def head_reader(self, image: Image) -> Iterator[ImageReader]:
        """Open an image that nobody writes to for reading, as it is now. Raises ClusterError."""
        action = "cannot open or close"
        opening = self.retried(action, image, partial(self.opened, image))
        with (
            self.errors(action, image),
            opening as opened,
            ImageReader(self, image, opened, self._layout(opened), READ_FLAGS, SnapshotId()) as reader,
        ):
            yield reader

    def allow_snapshots(self, image: Image) -> None:
        """Raise ClusterError unless the user may make snapshots in the image's pool.

        Asks the monitors for a snapshot id and gives it back, which is what a snapshot of an image
        begins with, and touches no image.
        """
        with self.errors("cannot make snapshots in the pool of", image):
            pool = self.pool_of(image)
            pool.remove_self_managed_snap(pool.create_self_managed_snap())

    def lock(self, image: Image, name: str, owner: str, duration: int, claim: Claim) -> None:
        """Take the lock object `name` beside the image for `duration` seconds, or keep it.

        The object's content names who took it last. Raises LockHeld if somebody else has it, LockLost if
        it was to be kept and somebody else may have had it, ClusterError.
        """
        action = f"cannot {claim.value} the lock {name} beside"
        with self.errors(action, image), rados.WriteOpCtx() as operation:
            if claim is Claim.RENEW:
                operation.cmpext(owner.encode())
            operation.execute("lock", "lock", lock_request(LOCK_NAME, owner, duration))
            operation.write_full(owner.encode())
            if not self._lock_operated(image, name, operation):
                hint = "was the cluster, or this node, stalled for longer than LOCK_DURATION?"
                message = f"the lock {name} beside image {image} has expired, and was another's since"
                raise LockLost(message, hint)

    def _lock_operated(self, image: Image, name: str, operation: Any) -> bool:
        """Do all of an operation on a lock object, or nothing; tell whether its content was as expected."""
        try:
            self.pool_of(image).operate_write_op(operation, name)
        except (rados.ObjectBusy, rados.ObjectExists) as error:
            raise LockHeld(f"the lock {name} beside image {image} is another's") from error
        except rados.ObjectNotFound:
            return False
        except rados.Error as error:
            if abs(error.errno or 0) < NOT_EQUAL:
                raise
            return False
        return True

    def object_exists(self, image: Image, name: str) -> bool:
        """Tell whether there is an object of this name beside the image."""
        with self.errors(f"cannot look for the object {name} beside", image):
            try:
                self.pool_of(image).stat(name)
            except rados.ObjectNotFound:
                return False
            return True

    def remove_lock(self, image: Image, name: str, owner: str) -> None:
        """Remove a lock with its object, if it is this owner's; one that is gone or another's is left.

        In one operation, so that one that comes late can't remove what somebody else has taken meanwhile.
        """
        action = f"cannot remove the lock {name} beside"
        self._require_answers(action, image)
        with self.errors(action, image), rados.WriteOpCtx() as operation, suppress(LockHeld):
            operation.cmpext(owner.encode())
            operation.execute("lock", "lock", lock_request(LOCK_NAME, owner, 1))  # refused if another has it
            operation.remove()
            self._lock_operated(image, name, operation)

    def _layout(self, opened: Any) -> Layout:
        features = opened.features()
        data_pool = ""
        if features & rbd.RBD_FEATURE_DATA_POOL:
            data_pool = self._rados.pool_reverse_lookup(opened.data_pool_id())
        return Layout(
            object_size=int(opened.stat()["obj_size"]),
            features=tuple(name for name, bit in FEATURES.items() if features & bit),
            stripe_unit=opened.stripe_unit(),
            stripe_count=opened.stripe_count(),
            data_pool=data_pool,
        )
