"""Ceph: connections, snapshots, extents, reads and locks. The only importer of rados and rbd."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, Callable

import rados
import rbd

from .errors import BackupError
from .model import ClusterAddress, Extent, Image

# Nobody reads these bytes again soon, so the OSD need not keep them in its cache. NOCACHE, other
# than DONTNEED, leaves in the cache what other clients put there (rados.h).
READ_FLAGS = rados.LIBRADOS_OP_FLAG_FADVISE_NOCACHE | rados.LIBRADOS_OP_FLAG_FADVISE_SEQUENTIAL

# Allocation is listed this many bytes of image at a time, so that a list stays small for any size.
EXTENT_SLAB = 4 << 30

LOCK_NAME = "virt-rbd-backup"


class Claim(int, Enum):
    """What to do about a lock; the values are the flags of librados.h."""

    TAKE = 0  # it has to be free
    TAKE_OR_RENEW = 1 << 0
    RENEW = 1 << 1  # it has to be ours already


class ClusterError(BackupError):
    """Ceph refused or did not answer. `number` is the errno, 0 where there is none."""

    def __init__(self, message: str, hint: str = "", number: int = 0) -> None:
        super().__init__(message, hint)
        self.number = number


class ImageGone(ClusterError):
    """The image, or its pool, does not exist."""


class LockHeld(ClusterError):
    """Somebody else holds the lock."""


class Cluster:
    """A connection to one Ceph cluster as one cephx user. Close it; or use it as a context manager."""

    def __init__(
        self, address: ClusterAddress, key: str, conf_file: str, timeout: int, read_rate: int = 0
    ) -> None:
        """Connect.

        `conf_file` serves for what the address leaves open. `timeout`, in seconds, bounds every
        operation, as Ceph's own default is to wait for ever. `read_rate` is in bytes per second and
        image, 0 for no limit. Raises ClusterError.
        """
        self.user = address.user or "admin"
        self.timeout = timeout
        options = {
            "rados_osd_op_timeout": timeout,
            "rados_mon_op_timeout": timeout,
            "client_mount_timeout": timeout,
            "rbd_cache": "false",
            "rbd_qos_read_bps_limit": read_rate,
            # librados would write its own mind into our standard error, and sockets into /run
            "log_to_stderr": "false",
            "log_file": "",
            "admin_socket": "",
        }
        if address.monitors:
            options["mon_host"] = ",".join(address.monitors)
        if key:
            options["key"] = key
        self._pools: dict[tuple[str, str], Any] = {}
        path = address.conf_file or conf_file
        if not os.path.exists(path) and (address.conf_file or not (address.monitors and key)):
            raise ClusterError(f"there is no {path}", "set CEPH_CONF to the cluster's configuration file")
        with self.errors("cannot connect to the cluster"):
            self._rados = rados.Rados(
                conffile=path if os.path.exists(path) else None,
                rados_id=self.user,
                conf={name: str(value) for name, value in options.items()},
            )
            try:
                self._rados.connect(timeout=timeout)
            except BaseException:
                self._rados.shutdown()
                raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        self._rados.shutdown()

    def image_size(self, image: Image) -> int:
        """Give the image's size now, in bytes."""
        with self.errors("cannot open", image), self._open(image) as opened:
            return int(opened.size())

    def is_watched(self, image: Image) -> bool:
        """Tell whether some client, such as a QEMU on another node, has the image open for writing."""
        with self.errors("cannot list the watchers of", image), self._open(image) as opened:
            return any(True for _ in opened.watchers_list())

    def create_snapshot(self, image: Image, name: str) -> None:
        action = f"cannot create snapshot {name} of"
        with self.errors(action, image), self._open(image, read_only=False) as opened:
            opened.create_snap(name)

    def remove_snapshot(self, image: Image, name: str) -> None:
        """Remove it; that it, or the whole image, is already gone counts as success."""
        with self.errors(f"cannot remove snapshot {name} of", image):
            try:
                with self._open(image, read_only=False) as opened:
                    opened.remove_snap(name)
            except rbd.ImageNotFound:
                return

    def snapshot_names(self, image: Image) -> list[str]:
        with self.errors("cannot list the snapshots of", image), self._open(image) as opened:
            return [snapshot["name"] for snapshot in opened.list_snaps()]

    @contextmanager
    def reader(self, image: Image, snapshot: str) -> Iterator[ImageReader]:
        """Open a snapshot for reading. Raises ClusterError too if it was removed meanwhile.

        What is read of a snapshot that is being removed reads as zeros, without an error.
        """
        action = f"cannot open or close snapshot {snapshot} of"
        with self.errors(action, image), self._open(image, snapshot=snapshot) as opened:
            yield ImageReader(self, image, opened)
        if snapshot not in self.snapshot_names(image):
            message = f"snapshot {snapshot} of image {image} was removed while it was read"
            raise ClusterError(message, "who removes snapshots that are not theirs?")

    def allow_snapshots(self, image: Image) -> None:
        """Raise ClusterError unless the user may make snapshots in the image's pool.

        Asks the monitors for a snapshot id and gives it back, which is what a snapshot of an image
        begins with, and touches no image.
        """
        with self.errors("cannot make snapshots in the pool of", image):
            pool = self._pool(image)
            pool.remove_self_managed_snap(pool.create_self_managed_snap())

    def lock(self, image: Image, name: str, owner: str, duration: int, claim: Claim) -> None:
        """Take the lock object `name` beside the image for `duration` seconds, or renew it.

        Raises LockHeld if it is somebody else's, ClusterError if it was to be renewed but is not ours.
        """
        with self.errors(f"cannot {claim.name.lower()} the lock {name} beside", image):
            pool = self._pool(image)
            try:
                pool.lock_exclusive(name, LOCK_NAME, owner, owner, duration, claim.value)
            except (rados.ObjectBusy, rados.ObjectExists) as error:
                raise LockHeld(f"the lock {name} beside image {image} is another's") from error
            except rados.ObjectNotFound as error:
                hint = "was the cluster, or this node, stalled for longer than LOCK_DURATION?"
                raise ClusterError(f"the lock {name} beside image {image} has expired", hint) from error

    def object_exists(self, image: Image, name: str) -> bool:
        """Tell whether there is an object of this name beside the image."""
        with self.errors(f"cannot look for the object {name} beside", image):
            try:
                self._pool(image).stat(name)
            except rados.ObjectNotFound:
                return False
            return True

    def remove_lock(self, image: Image, name: str) -> None:
        """Remove a lock that is ours together with its object; already gone counts as success."""
        with self.errors(f"cannot remove the lock {name} beside", image):
            try:
                self._pool(image).remove_object(name)
            except rados.ObjectNotFound:
                return

    def _pool(self, image: Image) -> Any:
        key = (image.pool, image.namespace)
        if key not in self._pools:
            pool = self._rados.open_ioctx(image.pool)
            pool.set_namespace(image.namespace)
            self._pools[key] = pool
        return self._pools[key]

    def _open(self, image: Image, snapshot: str | None = None, read_only: bool = True) -> Any:
        return rbd.Image(self._pool(image), image.name, snapshot=snapshot, read_only=read_only)

    @contextmanager
    def errors(self, action: str, image: Image | None = None) -> Iterator[None]:
        """Map what rados and rbd raise to ClusterError."""
        try:
            yield
        except (rados.Error, rbd.Error) as error:
            number = abs(getattr(error, "errno", 0) or 0)
            what = f"{action} image {image}" if image else action
            reason = os.strerror(number).lower() if number else str(error)
            kind = ImageGone if number == errno.ENOENT and image else ClusterError
            raise kind(f"{what}: {reason}", self._hint(number, image), number) from error

    def _hint(self, number: int, image: Image | None) -> str:
        pool = image.pool if image else "..."
        if number == errno.ETIMEDOUT:
            return (
                f"no answer within {self.timeout} s: are the monitors and OSDs up, and is the key of "
                f"client.{self.user} right? (a wrong key shows as a time-out); see CEPH_TIMEOUT"
            )
        if number in (errno.EPERM, errno.EACCES):
            return (
                f"ceph auth caps client.{self.user} mon 'profile rbd' osd 'profile rbd pool={pool}' "
                "(and every other pool it uses)"
            )
        if number == errno.ENOENT:
            return "does the image exist under this name?" if image else "is there a keyring for this user?"
        if number == errno.EDQUOT:
            return f"the snapshot limit is reached: see rbd snap limit, image {image}"
        return ""


class ImageReader:
    """A snapshot, open for reading. `size` is its own, whatever the image has become since."""

    def __init__(self, cluster: Cluster, image: Image, opened: Any) -> None:
        self._cluster = cluster
        self._image = image
        self._opened = opened
        self.size = int(opened.size())

    def extents(self) -> Iterator[Extent]:
        """Yield what is allocated, parents of a clone included, in ascending order.

        The exact listing, object by object: the fast one (whole_object, from the object map) has been
        wrong more than once (Ceph trackers 42248, 53784, 53885, 61616).
        """
        for start in range(0, self.size, EXTENT_SLAB):
            found: list[tuple[int, int]] = []

            def note(offset: int, length: int, exists: bool, found: list[tuple[int, int]] = found) -> None:
                if exists:
                    found.append((offset, length))

            with self._cluster.errors("cannot list what is allocated in", self._image):
                self._opened.diff_iterate(start, min(EXTENT_SLAB, self.size - start), None, note)
            for offset, length in sorted(found):
                yield Extent(offset, length)

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        """Start to read; the returned call waits for the bytes, exactly `length` of them."""
        data: bytes | None = None

        def arrived(_completion: Any, read: bytes | None) -> None:
            nonlocal data
            data = read

        action = f"cannot read {length} bytes at {offset} of"
        with self._cluster.errors(action, self._image):
            completion = self._opened.aio_read(offset, length, arrived, READ_FLAGS)

        def wait() -> bytes:
            completion.wait_for_complete_and_cb()
            with self._cluster.errors(action, self._image):
                result = completion.get_return_value()
                if result < 0:
                    raise rbd.OSError("read failed", errno=-result)
            if data is None or len(data) != length:
                got = 0 if data is None else len(data)
                raise ClusterError(f"{action} image {self._image}: got only {got} bytes")
            return data

        return wait
