"""Memory of an incremental backup: it hardly grows with the image, as checksums and manifest are on disk."""

from __future__ import annotations

import tracemalloc
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import Callable

import pytest

from backup.model import Extent
from backup.restore_point import manifest
from backup.restore_point.checksums import RECORD, Checksums
from backup.stored import Base, SavedDomain
from backup.system import spool
from outputs.restic_repository.manifest_cache import ManifestCache
from outputs.segments import changed
from outputs.segments.changed import SegmentedDisk, planned
from outputs.segments.last_files import LastFiles
from outputs.segments.layout import pack_times

from ..memory_snapshot import MemorySnapshot, MemorySource
from ..samples import MIB, RUN, TAKEN, UUID, domain, held_point, restore_point

OBJECT = 4 * MIB
SIZE = 256 << 30
MANIFEST_ID = "0123abcd" * 8
# 65,536 segments, whose checksums alone have 1.8 MB. Held as objects they would take twenty times as much.
MOST = 8_000_000


class Full(MemorySnapshot):
    """A snapshot that is full of data, which nobody reads."""

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        yield within or Extent(0, self.size)

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        return lambda: b""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MEMORY_LIMIT", 1 << 16)
    monkeypatch.setattr(changed, "spot_check", lambda *_: None)


def backed_up(snapshot: Full, base: Base | None, cache: ManifestCache) -> SegmentedDisk:
    """Do what a worker does with an image, but for Ceph, FUSE and restic."""
    source = MemorySource(snapshot, base=base)
    disk = planned(source, snapshot, TAKEN, timedelta(), False, lambda *_: None)
    for number in disk.changed:
        checksums = Checksums()
        checksums.append(RECORD.pack(disk.files.segments.extent(number).offset, OBJECT, bytes(16)))
        disk.files.read.keep(number, checksums)
    assert not disk.missing
    found = disk.checksums()
    image = disk.saved(found, TAKEN, 1.0)
    times = {"vda": pack_times(disk.files.times)}
    packed = manifest.pack(restore_point(domain()), [image], {"vda": found}, times)
    LastFiles(lambda: packed, 0).pack()
    cache.keep(held_point().id, MANIFEST_ID, packed)
    return disk


def test_memory_hardly_grows_with_the_image(tmp_path: Path) -> None:
    cache = ManifestCache(str(tmp_path))
    tracemalloc.start()
    try:
        first = backed_up(Full(SIZE), None, cache)
        assert len(first.changed) == SIZE // OBJECT
        del first
        packed = cache.find(held_point(RUN, UUID, manifest_id=MANIFEST_ID))
        assert packed
        saved: SavedDomain = manifest.unpack(packed)
        base = Base("base", saved.images[0], saved.checksums["vda"], saved.times["vda"])
        assert len(Checksums(base.checksums)) == SIZE // OBJECT
        scattered = [Extent(offset, 1) for offset in range(0, SIZE, 100 * OBJECT)]
        second = backed_up(Full(SIZE, base="base", changed=scattered), base, cache)
        assert len(second.changed) == len(scattered)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MOST
