"""Operations on a cluster's images and snapshots, and on the lock objects beside them."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Any, Callable, Optional

import rados
import rbd

from ..model import Image
from ..stored import Layout, SnapshotId
from .connection import Result
from .errors import ClusterError, LockHeld, LockLost, PoolFull, SnapshotInUse
from .image_limits import limits_in_effect
from .image_listing import ImageListing
from .image_lock import is_mirror, owner_named, owners, remover
from .image_reader import ImageReader
from .lock_request import holders, lock_info_request, lock_request
from .unfit_image import require_fit
from .watchers import users

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

# LIBRADOS_OPERATION_FULL_TRY and FULL_FORCE of librados.h: our locks take a few bytes, and without them no
# snapshot may be removed, which is what a full pool needs.
THOUGH_FULL = 64 | 128

LOCK_NAME = "virt-rbd-backup"

NOT_EQUAL = 4095  # MAX_ERRNO: a comparison in an operation failed at its first byte


class Claim(Enum):
    """How to claim a lock."""

    TAKE = "take"  # only if no other owner holds it
    RENEW = "renew"  # also after it expired, if no other owner has held it since


class Cluster(ImageListing):
    """A cluster's images, snapshots and lock objects, over one connection."""

    def image_size(self, image: Image) -> int:
        """Return the image's current size in bytes."""
        return self._asked("cannot open", image, lambda opened: int(opened.size()))

    def identified(self, image: Image) -> Image:
        """Return the image with its id and its data pool.

        Raises ClusterError if its snapshots would not be usable backups, or if another program's lock keeps
        them from being made.
        """

        def identify(opened: Any) -> Image:
            require_fit(image, opened)
            if opened.old_format():
                return image
            return replace(image, id=opened.id(), data_pool=self._data_pool(opened))

        return self._asked("cannot open", image, identify)

    def is_mirror(self, image: Image) -> bool:
        """Return whether the image is a mirror that is not primary: no client can change its snapshots."""
        return self._asked("cannot open", image, is_mirror)

    def watchers(self, image: Image) -> Sequence[str]:
        """Return the addresses of the clients that have the image open for writing.

        Such as a QEMU on this or another node, but not an rbd-mirror, which only reads.
        """

        def listed(opened: Any) -> Sequence[str]:
            return users(self.pool_of(image), opened)

        return self._asked("cannot list the watchers of", image, listed)

    @contextmanager
    def image_open(self, image: Image) -> Iterator[None]:
        """Keep the image open during the block, so that `create_snapshot` is faster. Raises ClusterError."""
        action = "cannot open or close"
        opening = self.retried(action, image, partial(self.opened, image, read_only=False))
        with self.errors(action, image), opening as opened:
            self._open_images[image] = opened
            found = self.retried(action, image, partial(owners, opened))
            self._lock_owners[image] = ", ".join(map(str, found))
            try:
                yield
            finally:
                del self._open_images[image]

    def lock_owner(self, image: Image) -> str:
        """Return who owned the image's lock when it was opened by `image_open`, "" if nobody or not known."""
        return self._lock_owners.get(image, "")

    def create_snapshot(self, image: Image, name: str) -> None:
        """Make a snapshot. Raises ClusterError, also if one of this name is there or half made."""
        action = f"cannot create snapshot {name} of"
        with ExitStack() as stack:
            stack.enter_context(self.errors(action, image))
            opened = self._open_images.get(image)
            opened = opened or stack.enter_context(self.opened(image, read_only=False))
            with self.owner_named(image, opened, action):
                opened.create_snap(name)
            self._require_made(image, opened, name)

    def _require_made(self, image: Image, opened: Any, name: str) -> None:
        """Raise ClusterError if librbd does not know a snapshot that it has just made.

        It takes one that is there for made (EEXIST in Operations.cc): a request that had timed out may have
        been carried out in part.
        """
        try:
            opened.snap_get_id(name)
        except rbd.ImageNotFound as error:
            message = (
                f"snapshot {name} of image {image} may not be whole: an attempt that timed out has begun it"
            )
            raise ClusterError(message, "the retry removes it, and makes it again", errno.EAGAIN) from error

    def remove_snapshot(self, image: Image, name: str) -> None:
        """Remove a snapshot; success if it, or the whole image, is already gone.

        Raises SnapshotInUse if it is protected or has clones, ClusterError.
        """

        action = f"cannot remove snapshot {name} of"

        def remove() -> None:
            try:
                with self.opened(image, read_only=False) as opened:
                    self._require_removable(image, opened)
                    with self.owner_named(image, opened, action):
                        opened.remove_snap(name)
            except rbd.ImageNotFound:
                return
            except rbd.ImageBusy as error:
                message = f"cannot remove snapshot {name} of image {image}: it is protected, or has clones"
                hint = f"rbd children {image}@{name}; rbd snap unprotect {image}@{name}"
                raise SnapshotInUse(message, hint, errno.EBUSY) from error

        self.retried(action, image, remove)

    def _require_removable(self, image: Image, opened: Any) -> None:
        """Raise ClusterError if a full pool blocks the client that would have to remove snapshots.

        Not the data pool: for it the monitors are asked alone (SnapshotRemoveRequest of librbd).
        """
        owner = remover(opened)
        if owner:
            try:
                self.require_not_full(image.pool)
            except PoolFull as error:
                message = (
                    f"{error.message}: {owner}, which has the lock of {image}, waits and removes nothing"
                )
                raise ClusterError(message, error.hint, error.number) from error

    def snapshot_ids(self, image: Image) -> dict[str, int]:
        """Return the ids of the image's snapshots by their names."""

        def ids(opened: Any) -> dict[str, int]:
            return {snapshot["name"]: snapshot["id"] for snapshot in opened.list_snaps()}

        return self._asked("cannot list the snapshots of", image, ids)

    def snapshot_names(self, image: Image) -> list[str]:
        return list(self.snapshot_ids(image))

    def bytes_changed_since(self, image: Image, snapshot: str) -> Optional[int]:
        """Return the size of all objects that were written or discarded since the snapshot was made.

        So many bytes of the cluster does the snapshot hold at the most. From the object maps; None if they
        are not valid. Raises ClusterError.
        """
        total = 0

        def add(_offset: int, length: int, _exists: bool) -> None:
            nonlocal total
            total += length

        with self.errors(f"cannot list the changes since {snapshot} of", image), self.opened(image) as opened:
            if not self.has_valid_object_map(opened):
                return None
            opened.diff_iterate(0, opened.size(), snapshot, add, True, True)
        return total

    def rename_snapshot(self, image: Image, name: str, new: str) -> None:
        action = f"cannot rename snapshot {name} of"

        def rename() -> None:
            with self.opened(image, read_only=False) as opened:
                names = {snapshot["name"] for snapshot in opened.list_snaps()}
                if new not in names or name in names:  # else an attempt that timed out has renamed it
                    with self.owner_named(image, opened, action):
                        opened.rename_snap(name, new)

        self.retried(action, image, rename)

    def owner_named(self, image: Image, opened: Any, action: str) -> AbstractContextManager[None]:
        """Name the owner of an open image's lock if it keeps the block from changing the image."""
        give_up = partial(self.give_up_own_lock, image, opened)
        return owner_named(image, opened, action, self.user, self.client, give_up)

    def changed(self, action: str, image: Image, opened: Any, change: Callable[[], Result]) -> Result:
        """Change an open image, and try again if that times out. Raises ClusterError."""

        def attempt() -> Result:
            with self.owner_named(image, opened, action):
                return change()

        return self.retried(action, image, attempt)

    @contextmanager
    def reader(self, image: Image, snapshot: str) -> Iterator[ImageReader]:
        """Open a snapshot for reading. Raises ClusterError, also if it was removed meanwhile.

        Without that check, a snapshot that is being removed reads as zeros, without an error.
        """
        action = f"cannot open or close snapshot {snapshot} of"
        opening = self.retried(action, image, partial(self.opened, image, snapshot=snapshot))
        with self.errors(action, image), opening as opened:
            self.report_limits(image, opened, "read")
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
        """Raise ClusterError unless the user may create snapshots in the image's pool, and it is not full.

        Requests a snapshot id from the monitors, the first step of a snapshot, and returns it; no image is
        touched.
        """
        with self.errors("cannot create snapshots in the pool of", image):
            pool = self.pool_of(image)
            pool.remove_self_managed_snap(pool.create_self_managed_snap())
        self.require_not_full(image.pool)

    def remarks(self, image: Image) -> Sequence[str]:
        """Return what does not prevent a backup of the image, but may delay it: limits, a dead lock owner."""
        with self.errors("cannot open", image), self.opened(image) as opened:
            limits = limits_in_effect(opened, "read")
            dead = [one for one in owners(opened) if not one.alive]
        found = [f"reads of image {image} are limited by {limits}"] if limits else []
        return found + [
            f"its lock is still {one}'s, which is dead: snapshots need caps that can blocklist it "
            f"(mon 'profile rbd'); or rbd lock rm {image} '{one.cookie}' {one.client}"
            for one in dead
        ]

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
            self.pool_of(image).operate_write_op(operation, name, flags=THOUGH_FULL)
        except (rados.ObjectBusy, rados.ObjectExists) as error:
            raise LockHeld(f"another owner holds the lock {name} beside image {image}") from error
        except rados.ObjectNotFound:
            return False
        except rados.Error as error:
            if abs(error.errno or 0) < NOT_EQUAL:
                raise
            return False
        return True

    def is_locked(self, image: Image, name: str) -> bool:
        """Return whether anybody holds the lock object `name` beside the image now."""
        with self.errors(f"cannot read the lock {name} beside", image), suppress(rados.ObjectNotFound):
            request = lock_info_request(LOCK_NAME)
            _, answer = self.pool_of(image).execute(name, "lock", "get_info", request)
            return bool(holders(answer))
        return False

    def last_owner(self, image: Image, name: str) -> str:
        """Return who has, or had, the lock object `name` beside the image; "" if there is none."""

        def read() -> str:
            with suppress(rados.ObjectNotFound):
                return str(self.pool_of(image).read(name).decode())
            return ""

        return self.retried(f"cannot read the lock {name} beside", image, read)

    def remove_lock(self, image: Image, name: str, owner: str, expires: float = math.inf) -> None:
        """Remove a lock with its object if this owner holds it; otherwise do nothing.

        In one operation, so that a late one cannot remove a lock that another owner has taken meanwhile. Not
        retried once it `expires` by itself, in time.monotonic().
        """

        def remove() -> None:
            with rados.WriteOpCtx() as operation, suppress(LockHeld):
                operation.cmpext(owner.encode())
                # refused if another owner holds the lock
                operation.execute("lock", "lock", lock_request(LOCK_NAME, owner, 1))
                operation.remove()
                self._lock_operated(image, name, operation)

        self.retried(f"cannot remove the lock {name} beside", image, remove, until=expires)

    def _asked(self, action: str, image: Image, question: Callable[[Any], Result]) -> Result:
        """Open the image for the question, and return its answer; retry both if they time out."""

        def ask() -> Result:
            with self.opened(image) as opened:
                return question(opened)

        return self.retried(action, image, ask)

    def _layout(self, opened: Any) -> Layout:
        features = opened.features()
        return Layout(
            object_size=int(opened.stat()["obj_size"]),
            features=tuple(name for name, bit in FEATURES.items() if features & bit),
            stripe_unit=opened.stripe_unit(),
            stripe_count=opened.stripe_count(),
            data_pool=self._data_pool(opened),
        )

    def _data_pool(self, opened: Any) -> str:
        """Return the pool of an open image's data, "" if that is the image's own."""
        if not opened.features() & rbd.RBD_FEATURE_DATA_POOL:
            return ""
        return str(self._rados.pool_reverse_lookup(opened.data_pool_id()))
