"""A cluster on paper: stands in for Ceph."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Optional

from backup.ceph.cluster import Claim, Cluster
from backup.ceph.clusters import Clusters
from backup.ceph.errors import ClusterError, ImageGone, LockHeld, LockLost, PoolFull
from backup.ceph.image_listing import ListedImage
from backup.ceph.image_reader import ImageReader
from backup.ceph.retry import CephRetry
from backup.model import ClusterAddress, Image, image_named

from .samples import FSID, MIB


class PaperCluster(Cluster):
    """Knows its snapshots and locks, and refuses what Ceph refuses."""

    def __init__(self, fsid: str = FSID) -> None:
        self.fsid = fsid
        self.client = "client.1"
        self.user = "libvirt"
        self.timeout = 60
        self.retry = CephRetry()
        self.ids: dict[str, str] = {}  # of images, by the names that they have now
        self.watching: dict[str, int] = {}  # clients that have an image open
        self.snapshots: dict[str, set[str]] = {}
        self.numbers: dict[tuple[str, str], int] = {}  # ids of snapshots, by image and name
        self.locks: dict[str, str] = {}  # owners by names; in other pools than vms, as pool/namespace/name
        self.tokens: dict[str, str] = {}  # who took them last, expired or not
        self.claims: list[Claim] = []
        self.failing: set[tuple[str, str]] = set()  # ("open", "create", "rename" or "remove", image)
        self.distrusted: set[str] = set()  # image@snapshot or image@head whose object map is not valid
        self.full: set[str] = set()  # pools
        self.data_pools: dict[str, str] = {}  # of images that have their data in another pool
        self.asked_for_room: list[str] = []
        self.open: set[str] = set()  # images that are kept open
        self._lock_owners = {}
        self.hanging: set[str] = set()  # images whose snapshots take until `go_on` is set
        self.go_on = threading.Event()
        self.together: threading.Barrier | None = None  # all creations have to be under way at once
        self.closed_together: threading.Barrier | None = None  # all images have to be closed at once
        self.unreachable = False
        self.timeouts = 0  # how many claims of a lock time out
        self.pools = {"vms"}
        self.trash: set[str] = set()  # images in the trash
        self.mirrors: set[str] = set()  # images that are no primary ones
        self.claim_hangs = threading.Event()  # claims of a lock take until `go_on` is set

    def pool_names(self) -> list[str]:
        return sorted(self.pools)

    def namespaces(self, pool: str) -> list[str]:
        if pool not in {name.split("/")[0] for name in self.snapshots}:
            raise ClusterError(f"there is no pool {pool}", number=errno.ENOENT)
        return sorted({"", *(parts[1] for name in self.snapshots if len(parts := name.split("/")) == 3)})

    def images_in(self, pool: str, namespace: str) -> list[ListedImage]:
        images = [one for name in self.snapshots if (one := image_named(name)) and one.pool == pool]
        return [
            ListedImage(replace(one, id=f"id of {one}"), str(one) in self.trash)
            for one in images
            if one.namespace == namespace
        ]

    def image_size(self, image: Image) -> int:
        self.snapshot_names(image)
        return len(str(image))

    def identified(self, image: Image) -> Image:
        self.snapshot_names(image)
        number, data_pool = self.ids.get(str(image), f"id of {image}"), self.data_pools.get(str(image), "")
        return replace(image, id=number, data_pool=data_pool)

    def is_mirror(self, image: Image) -> bool:
        return str(image) in self.mirrors

    def watchers(self, image: Image) -> Sequence[str]:
        assert image.id, "asked by its name, which may be another image's by now"
        return [f"192.0.2.{number}:0/1" for number in range(self.watching.get(str(image), 0))]

    def remarks(self, image: Image) -> Sequence[str]:
        return []

    @contextmanager
    def reader(self, image: Image, snapshot: str) -> Iterator[ImageReader]:
        raise AssertionError("an output on paper reads nothing")

    def require_not_full(self, pool: str) -> None:
        self.asked_for_room.append(pool)
        if pool in self.full:
            raise PoolFull(f"pool {pool} is full")

    @contextmanager
    def image_open(self, image: Image) -> Iterator[None]:
        if ("open", str(image)) in self.failing:
            raise ClusterError(f"cannot open or close image {image}: connection timed out")
        self.open.add(str(image))
        try:
            yield
        finally:
            if self.closed_together:
                self.closed_together.wait(timeout=5)
            self.open.remove(str(image))

    @contextmanager
    def opened(self, image: Image, snapshot: str | None = None, read_only: bool = True) -> Iterator[Any]:
        yield f"{image}@{snapshot or 'head'}"

    def has_valid_object_map(self, opened: Any) -> bool:
        return opened not in self.distrusted

    def has_pool(self, name: str) -> bool:
        return name in self.pools

    def create_snapshot(self, image: Image, name: str) -> None:
        if self.together:
            self.together.wait(timeout=5)
        if str(image) in self.hanging:
            assert self.go_on.wait(timeout=5)
        if name in self.snapshots[str(image)]:
            raise ClusterError(f"cannot create snapshot {name} of image {image}: file exists")
        self.snapshots[str(image)].add(name)
        if ("create", str(image)) in self.failing:
            raise ClusterError(f"cannot create snapshot {name} of image {image}: connection timed out")

    def remove_snapshot(self, image: Image, name: str) -> None:
        if ("remove", str(image)) in self.failing:
            raise ClusterError(f"cannot remove snapshot {name} of image {image}: connection timed out")
        self.snapshots.get(str(image), set()).discard(name)

    def snapshot_names(self, image: Image) -> list[str]:
        if str(image) not in self.snapshots:
            raise ImageGone(f"cannot list the snapshots of image {image}: no such file or directory")
        return sorted(self.snapshots[str(image)])

    def snapshot_ids(self, image: Image) -> dict[str, int]:
        names = self.snapshot_names(image)
        return {name: self.numbers.setdefault((str(image), name), len(self.numbers) + 1) for name in names}

    def rename_snapshot(self, image: Image, name: str, new: str) -> None:
        if ("rename", str(image)) in self.failing:
            raise ClusterError(f"cannot rename snapshot {name} of image {image}: connection timed out")
        self.numbers[(str(image), new)] = self.snapshot_ids(image)[name]
        self.snapshots[str(image)] ^= {name, new}

    def lock(self, image: Image, name: str, owner: str, duration: int, claim: Claim) -> None:
        if self.claim_hangs.is_set():
            assert self.go_on.wait(timeout=5)
        self.timeouts -= 1
        if self.unreachable or self.timeouts >= 0:
            raise ClusterError("connection timed out", "are the monitors up?", errno.ETIMEDOUT)
        self.claims.append(claim)
        name = _lock_name(image, name)
        locked_by = self.locks.get(name)
        if locked_by not in (None, owner):
            raise LockHeld(f"the lock {name} beside image {image} is held")
        if claim is Claim.RENEW and self.tokens.get(name) != owner:
            raise LockLost(
                f"the lock {name} beside image {image} has expired, and another owner has held it since"
            )
        self.locks[name] = self.tokens[name] = owner

    def is_locked(self, image: Image, name: str) -> bool:
        if self.unreachable:
            raise ClusterError("connection timed out", "are the monitors up?", errno.ETIMEDOUT)
        return _lock_name(image, name) in self.locks

    def bytes_changed_since(self, image: Image, snapshot: str) -> Optional[int]:
        if f"{image}@head" in self.distrusted:
            return None
        return MIB * len(self.snapshot_names(image))

    def last_owner(self, image: Image, name: str) -> str:
        return self.tokens.get(_lock_name(image, name), "")

    def object_exists(self, image: Image, name: str) -> bool:
        return _lock_name(image, name) in self.locks

    def remove_lock(self, image: Image, name: str, owner: str, expires: float = 0) -> None:
        if self.unreachable:
            raise ClusterError("connection timed out", "are the monitors up?", errno.ETIMEDOUT)
        name = _lock_name(image, name)
        if self.locks.get(name) == owner:
            del self.locks[name]
            del self.tokens[name]


def _lock_name(image: Image, name: str) -> str:
    return name if (image.pool, image.namespace) == ("vms", "") else f"{image.pool}/{image.namespace}/{name}"


class PaperClusters(Clusters):
    """The clusters at some addresses, and one for all others."""

    def __init__(
        self, cluster: PaperCluster, others: Mapping[ClusterAddress, PaperCluster] | None = None
    ) -> None:
        self.cluster = cluster
        self.others = others or {}

    def __exit__(self, *_: object) -> None:
        """None of them is open."""

    def at(self, address: ClusterAddress) -> PaperCluster:
        return self.others.get(address, self.cluster)
