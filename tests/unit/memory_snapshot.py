"""A snapshot in memory: stands in for librbd, which is an outside boundary."""

from __future__ import annotations

import errno
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Callable, Optional

from backup.ceph.errors import ClusterError
from backup.errors import BackupError
from backup.model import Disk, Extent, Image
from backup.stored import Base, Layout, SnapshotId

from .samples import LAYOUT, rbd_disk


@dataclass
class MemorySnapshot:
    """An image of `size` bytes that has `data` at some offsets and holes elsewhere.

    Satisfies protocols.SnapshotReader. The read of number `fails_at` fails when it is waited for.
    """

    size: int
    data: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    fails_at: int | None = None
    layout: Layout = LAYOUT
    source: SnapshotId = SnapshotId("fsid", "image-id", 7)  # noqa: RUF009
    base: str = ""
    changed: Sequence[Extent] = ()
    reads: list[Extent] = field(default_factory=list)
    pending: set[int] = field(default_factory=set)
    most_pending: int = 0
    unreadable: Collection[int] = ()  # offsets that the cluster has lost

    def __post_init__(self) -> None:
        assert all(offset + len(data) <= self.size for offset, data in self.data.items())

    @property
    def content(self) -> bytes:
        content = bytearray(self.size)
        for offset, data in self.data.items():
            content[offset : offset + len(data)] = data
        return bytes(content)

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        start, end = (within.offset, within.offset + within.length) if within else (0, self.size)
        for offset, data in sorted(self.data.items()):
            first, last = max(start, offset), min(end, offset + len(data))
            if first < last:
                yield Extent(first, last - first)

    def changes(self, since: str, fast: bool) -> Generator[Extent, None, None]:
        assert since == self.base
        yield from self.changed

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        number = len(self.reads)
        self.reads.append(Extent(offset, length))
        self.pending.add(number)
        self.most_pending = max(self.most_pending, len(self.pending))

        def wait() -> bytes:
            self.pending.remove(number)
            if number == self.fails_at:
                raise BackupError(f"cannot read {length} bytes at {offset}")
            if offset in self.unreadable:
                raise ClusterError(f"cannot read {length} bytes at {offset}", number=errno.EIO)
            return self._bytes(offset, length)

        return wait

    def _bytes(self, start: int, length: int) -> bytes:
        read = bytearray(length)
        for offset, data in self.data.items():
            first, last = max(start, offset), min(start + length, offset + len(data))
            if first < last:
                read[first - start : last - start] = data[first - offset : last - offset]
        return bytes(read)


@dataclass
class MemorySource:
    """A disk with a snapshot in memory. Satisfies protocols.SnapshotSource."""

    snapshot: MemorySnapshot
    disk: Disk = field(default_factory=rbd_disk)
    base: Optional[Base] = None

    @property
    def image(self) -> Image:
        assert self.disk.image
        return self.disk.image

    @contextmanager
    def open(self) -> Iterator[MemorySnapshot]:
        yield self.snapshot
        self.snapshot.pending.clear()  # closing an image waits for them
