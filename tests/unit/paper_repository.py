"""An RBD repository in memory: stands in for a pool with images, snapshots and notes."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from backup.ceph.errors import ClusterError, ImageGone, SnapshotInUse
from backup.ceph.image_reader import ImageReader
from backup.ceph.repository_image import RepositoryImage
from backup.ceph.repository_pool import ImageState, RepositoryAddress, RepositoryPool
from backup.model import Extent, Image
from backup.protocols import WrittenBytes
from outputs.rbd import Rbd

from .faulty_node import Boundary, Errors
from .memory_snapshot import MemorySnapshot
from .paper_cluster import PaperCluster

STEP = 64 << 10  # bytes: in such parts what has changed is listed
ERRORS = Errors(
    ClusterError("refused", number=errno.EPERM), ClusterError("no answer", number=errno.ETIMEDOUT)
)
ADDRESS = RepositoryAddress("/nowhere", "backup", "backups")


@dataclass
class StoredImage:
    """What a cluster has of an image. `dirty`: Ceph lists it as written since its last snapshot."""

    content: bytearray
    snapshots: dict[str, bytes] = field(default_factory=dict)
    protected: set[str] = field(default_factory=set)
    notes: dict[str, str] = field(default_factory=dict)
    users: int = 0  # clients that have it open
    dirty: bool = False


class PaperPool(RepositoryPool):
    """Refuses what Ceph refuses. All that changes something goes through `boundary`, if there is one."""

    def __init__(self) -> None:
        super().__init__(ADDRESS, HeadCluster(self))
        self.images: dict[str, StoredImage] = {}
        self.boundary: Optional[Boundary] = None
        self.unreadable: set[int] = set()  # offsets at which the cluster has lost what the images hold
        self.children: dict[tuple[str, str], list[str]] = {}  # clones by image and snapshot

    def call(self, name: str, effect: Callable[..., Any], *arguments: Any) -> Any:
        if not self.boundary:
            return effect(*arguments)
        return self.boundary.call(name, effect, ERRORS, *arguments)

    def names(self) -> Sequence[str]:
        return sorted(self.images)

    def state(self, name: str) -> ImageState:
        found = self.of(name)
        return ImageState(list(found.snapshots), dict(found.notes))

    def create(self, name: str, size: int, object_size: int) -> None:
        assert object_size
        self.call("create", self.images.setdefault, name, StoredImage(bytearray(size)))

    def remove(self, name: str) -> None:
        def remove() -> None:
            if name in self.images:
                assert not self.images[name].snapshots, "Ceph removes no image with snapshots"
                assert not self.images[name].users
                del self.images[name]

        self.call("remove", remove)

    @contextmanager
    def opened(self, name: str) -> Iterator[PaperImage]:
        found = self.of(name)
        found.users += 1
        try:
            yield PaperImage(self, name, found)
        finally:
            found.users -= 1

    @contextmanager
    def reader(self, name: str, snapshot: str) -> Iterator[ImageReader]:
        content = self.of(name).snapshots.get(snapshot)
        if content is None:
            raise ImageGone(f"there is no snapshot {snapshot} of {name}")
        yield MemorySnapshot(len(content), {0: content} if content else {})  # type: ignore[misc]

    def users(self, name: str) -> Sequence[str]:
        return [f"192.0.2.{number}:0/1" for number in range(self.of(name).users)]

    def clones(self, name: str, snapshot: str) -> Sequence[str]:
        return self.children.get((name, snapshot), [])

    def changes(self, name: str, since: str, exact: bool) -> Sequence[Extent]:
        found = self.of(name)
        before = found.snapshots[since] if since else b""
        return [
            Extent(start, STEP)
            for start in range(0, len(found.content), STEP)
            if found.content[start : start + STEP]
            != before[start : start + STEP].ljust(len(found.content[start : start + STEP]), b"\0")
        ]

    def is_changed(self, name: str, since: str) -> bool:
        found = self.of(name)
        return bytes(found.content) != found.snapshots[since] if since else any(found.content)

    def require_usable(self) -> None:
        pass

    def of(self, name: str) -> StoredImage:
        if name not in self.images:
            raise ImageGone(f"there is no image {name}")
        return self.images[name]


class HeadCluster(PaperCluster):
    """The cluster of such a pool: reads its images as they are now."""

    def __init__(self, pool: PaperPool) -> None:
        super().__init__()
        self.pool = pool

    @contextmanager
    def head_reader(self, image: Image) -> Iterator[ImageReader]:
        content = bytes(self.pool.of(image.name).content)
        head = MemorySnapshot(len(content), {0: content} if content else {})
        head.unreadable = self.pool.unreadable
        yield head  # type: ignore[misc]


class PaperImage(RepositoryImage):
    """An image of such a pool. A write has its effect when it is started."""

    def __init__(self, pool: PaperPool, name: str, stored: StoredImage) -> None:
        self.pool = pool
        self.name = name
        self.stored = stored

    @property
    def size(self) -> int:
        return len(self.stored.content)

    def resize(self, size: int) -> None:
        def resize() -> None:
            del self.stored.content[size:]
            self.stored.content.extend(bytes(size - len(self.stored.content)))

        self.pool.call("resize", resize)

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        assert offset + len(data) <= self.size

        def write() -> None:
            self.stored.content[offset : offset + len(data)] = data

        self.pool.call("write", write)
        return lambda: None

    def start_zeros(self, offset: int, length: int) -> Callable[[], None]:
        assert offset + length <= self.size

        def write() -> None:
            self.stored.content[offset : offset + length] = bytes(length)

        self.pool.call("zero", write)
        return lambda: None

    def flush(self) -> None:
        self.pool.call("flush", lambda: None)

    def snapshots(self) -> Sequence[str]:
        return list(self.stored.snapshots)

    def notes(self) -> Mapping[str, str]:
        return dict(self.stored.notes)

    def note(self, key: str, value: str) -> None:
        self.pool.call("note", self.stored.notes.__setitem__, key, value)

    def remove_note(self, key: str) -> None:
        self.pool.call("remove_note", self.stored.notes.pop, key, None)

    def make_snapshot(self, name: str) -> None:
        def make() -> None:
            self.stored.snapshots.setdefault(name, bytes(self.stored.content))

        self.pool.call("make_snapshot", make)
        self.protect_snapshot(name)

    def protect_snapshot(self, name: str) -> None:
        if name not in self.stored.snapshots:
            raise ImageGone(f"there is no snapshot {name} of {self.name}")
        self.pool.call("protect_snapshot", self.stored.protected.add, name)

    def remove_snapshot(self, name: str) -> None:
        def remove() -> None:
            if self.pool.children.get((self.name, name)):
                raise SnapshotInUse("has clones")
            self.stored.snapshots.pop(name, None)
            self.stored.protected.discard(name)

        self.pool.call("remove_snapshot", remove)


class PaperRbd(Rbd):
    """The output with a repository in memory."""

    pool: PaperPool

    @classmethod
    def on(cls, pool: PaperPool, runtime_dir: str) -> PaperRbd:
        output = cls(ADDRESS, runtime_dir, streams=2)
        object.__setattr__(output, "pool", pool)
        return output

    @contextmanager
    def _pool(self, *_: object) -> Iterator[PaperPool]:
        yield self.pool
