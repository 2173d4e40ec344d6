"""Operations on a cluster's images and snapshots, and on the lock objects beside them."""

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
from .errors import ClusterError, LockHeld, LockLost, SnapshotInUse
from .image_listing import ImageListing
from .image_reader import ImageReader
from .lock_request import lock_request

# The data will not be read again soon, so the OSD need not cache it. Unlike DONTNEED, NOCACHE leaves cached
# what other clients have read (rados.h).
READ_FLAGS = rados.LIBRADOS_OP_FLAG_FADVISE_NOCACHE | rados.LIBRADOS_OP_FLAG_FADVISE_SEQUENTIAL

# The features that an image can be created with, by their names for `rbd create --image-feature`.
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

# The first bytes of a clone that was formatted with an encryption of its own (librbd, crypto/luks/Magic.cc).
CLONE_MAGIC = b"RBDL\xba\xbe"

NOT_EQUAL = 4095  # MAX_ERRNO: a comparison in an operation failed at its first byte


class Claim(Enum):
    """How to claim a lock."""

    TAKE = "take"  # only if no other owner holds it
    RENEW = "renew"  # also after it expired, if no other owner has held it since


def _is_formatted_clone(opened: Any) -> bool:
    """Return whether an open image is a clone with an encryption that is not its parent's."""
    try:
        opened.parent_info()
    except rbd.ImageNotFound:
        return False
    return bool(opened.read(0, min(opened.size(), len(CLONE_MAGIC))) == CLONE_MAGIC)


class Cluster(ImageListing):
    """A cluster's images, snapshots and lock objects, over one connection."""

    def image_size(self, image: Image) -> int:
        """Return the image's current size in bytes."""
        with self.errors("cannot open", image), self.opened(image) as opened:
            return int(opened.size())

    def identified(self, image: Image) -> Image:
        """Return the image with its id. Raises ClusterError if its snapshots would not be usable backups."""
        with self.errors("cannot open", image), self.opened(image) as opened:
            if opened.features() & rbd.RBD_FEATURE_MIGRATING:
                hint = f"after its execution: rbd migration commit {image}"
                raise ClusterError(f"image {image} is being migrated", hint)
            mirror = opened.mirror_image_get_info()
            if mirror["state"] == rbd.RBD_MIRROR_IMAGE_ENABLED and not mirror["primary"]:
                message = f"image {image} is a mirror that is not primary"
                raise ClusterError(message, "back it up where it is primary; see rbd mirror image status")
            if _is_formatted_clone(opened):
                message = (
                    f"image {image} is a clone with an encryption of its own: "
                    "a copy of it cannot be decrypted where it still shows its parent's data"
                )
                hint = f"with the passphrases of all its layers (see rbd flatten --help): rbd flatten {image}"
                raise ClusterError(message, hint)
            return image if opened.old_format() else replace(image, id=opened.id())

    def watchers(self, image: Image) -> int:
        """Count the clients, such as a QEMU on this or another node, that have the image open for writing."""
        with self.errors("cannot list the watchers of", image), self.opened(image) as opened:
            return len(list(opened.watchers_list()))

    @contextmanager
    def image_open(self, image: Image) -> Iterator[None]:
        """Keep the image open during the block, so that `create_snapshot` is faster. Raises ClusterError."""
        with self.errors("cannot open or close", image), self.opened(image, read_only=False) as opened:
            self._open_images[image] = opened
            try:
                yield
            finally:
                del self._open_images[image]

    def create_snapshot(self, image: Image, name: str) -> None:
        with self.errors(f"cannot create snapshot {name} of", image):
            if image in self._open_images:
                self._open_images[image].create_snap(name)
                return
            with self.opened(image, read_only=False) as opened:
                opened.create_snap(name)

    def remove_snapshot(self, image: Image, name: str) -> None:
        """Remove a snapshot; success if it, or the whole image, is already gone.

        Raises SnapshotInUse if it is protected or has clones, ClusterError.
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
        """Return the ids of the image's snapshots by their names."""

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
                if new not in names or name in names:  # else an attempt that timed out has renamed it
                    opened.rename_snap(name, new)

        self.retried(f"cannot rename snapshot {name} of", image, rename)

    @contextmanager
    def reader(self, image: Image, snapshot: str) -> Iterator[ImageReader]:
        """Open a snapshot for reading. Raises ClusterError, also if it was removed meanwhile.

        Without that check, a snapshot that is being removed reads as zeros, without an error.
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
            raise ClusterError(message, "find out which program or person removes foreign snapshots")

    @contextmanager
    def head_reader(self, image: Image) -> Iterator[ImageReader]:
        """Open an image for reading, as it is now; nobody must write to it. Raises ClusterError."""
        action = "cannot open or close"
        opening = self.retried(action, image, partial(self.opened, image))
        with (
            self.errors(action, image),
            opening as opened,
            ImageReader(self, image, opened, self._layout(opened), READ_FLAGS, SnapshotId()) as reader,
        ):
            yield reader

    def allow_snapshots(self, image: Image) -> None:
        """Raise ClusterError unless the user may create snapshots in the image's pool.

        Requests a snapshot id from the monitors, the first step of a snapshot, and returns it; no image is
        touched.
        """
        with self.errors("cannot create snapshots in the pool of", image):
            pool = self.pool_of(image)
            pool.remove_self_managed_snap(pool.create_self_managed_snap())

    def lock(self, image: Image, name: str, owner: str, duration: int, claim: Claim) -> None:
        """Take or renew the lock object `name` beside the image for `duration` seconds.

        The object's content names its last owner. Raises LockHeld if another owner holds the lock, LockLost
        if it was to be renewed and another owner may have held it meanwhile, ClusterError.
        """
        action = f"cannot {claim.value} the lock {name} beside"
        with self.errors(action, image), rados.WriteOpCtx() as operation:
            if claim is Claim.RENEW:
                operation.cmpext(owner.encode())
            operation.execute("lock", "lock", lock_request(LOCK_NAME, owner, duration))
            operation.write_full(owner.encode())
            if not self._lock_operated(image, name, operation):
                hint = "the cluster, or this node, may have stalled for longer than LOCK_DURATION"
                message = (
                    f"the lock {name} beside image {image} has expired, and another owner has held it since"
                )
                raise LockLost(message, hint)

    def _lock_operated(self, image: Image, name: str, operation: Any) -> bool:
        """Execute an operation on a lock object; return False, without effect, if its content differs."""
        try:
            self.pool_of(image).operate_write_op(operation, name)
        except (rados.ObjectBusy, rados.ObjectExists) as error:
            raise LockHeld(f"another owner holds the lock {name} beside image {image}") from error
        except rados.ObjectNotFound:
            return False
        except rados.Error as error:
            if abs(error.errno or 0) < NOT_EQUAL:
                raise
            return False
        return True

    def remove_lock(self, image: Image, name: str, owner: str) -> None:
        """Remove a lock with its object if this owner holds it; otherwise do nothing.

        In one operation, so that a late one cannot remove a lock that another owner has taken meanwhile.
        """
        action = f"cannot remove the lock {name} beside"
        self._require_answers(action, image)
        with self.errors(action, image), rados.WriteOpCtx() as operation, suppress(LockHeld):
            operation.cmpext(owner.encode())
            # refused if another owner holds the lock
            operation.execute("lock", "lock", lock_request(LOCK_NAME, owner, 1))
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
