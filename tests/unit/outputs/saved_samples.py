"""Domains whose disks change from run to run, saved by an output that keeps restore points itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Optional

from backup.model import Extent
from backup.protocols import Output
from backup.restore_point import manifest
from backup.stored import Base, SavedImage, StoredPoint

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..paper_repository import STEP
from ..samples import MIB, TAKEN, UUID, domain, rbd_disk, restore_point

RUNS = [f"2024020{day}T040506Z-abcd" for day in range(1, 8)]
Disks = Mapping[str, bytes]  # contents by targets


def content(size: int, data: Mapping[int, bytes]) -> bytes:
    """Give zeros with this data at these offsets."""
    found = bytearray(size)
    for offset, part in data.items():
        found[offset : offset + len(part)] = part
    return bytes(found)


# What two disks hold in three runs: data moves, is zeroed, and the images grow and shrink.
FIRST: Disks = {
    "vda": content(9 * MIB + 513, {0: b"begin", 5 * MIB - 2: b"across", 9 * MIB + 512: b"x"}),
    "vdb": content(4 * MIB, {MIB: b"data" * 50000}),
}
SECOND: Disks = {
    "vda": content(13 * MIB, {0: b"begin", 5 * MIB: b"other", 12 * MIB: b"grown"}),
    "vdb": content(4 * MIB, {2 * MIB: b"moved" * 40000}),
}
THIRD: Disks = {
    "vda": content(5 * MIB + 7, {0: b"BEGIN", 5 * MIB: b"other"}),
    "vdb": content(6 * MIB, {2 * MIB: b"moved" * 40000, 5 * MIB: b"y"}),
}


def changes(before: bytes, now: bytes) -> Sequence[Extent]:
    """List what differs, as Ceph does: nothing of what one of them does not have."""
    return [
        Extent(start, min(STEP, len(now) - start))
        for start in range(0, len(now), STEP)
        if before[start : start + STEP].ljust(STEP, b"\0") != now[start : start + STEP].ljust(STEP, b"\0")
    ]


def snapshot(now: bytes, before: Optional[bytes]) -> MemorySnapshot:
    """Give a disk's snapshot, with the changes since the base snapshot if there is one."""
    parts = {start: now[start : start + STEP] for start in range(0, len(now), STEP)}
    data = {start: part for start, part in parts.items() if part.strip(b"\0")}
    if before is None:
        return MemorySnapshot(len(now), data)
    return MemorySnapshot(len(now), data, base="base", changed=changes(before, now))


def save(
    output: Output,
    run: str,
    now: Disks,
    before: Optional[tuple[str, Disks]] = None,
    job: Optional[JobOnPaper] = None,
) -> tuple[SavedImage, ...]:
    """Save a run; `before` is the run and the disks that base snapshots are left of."""
    base = output.base(UUID, [before[0]], (), lambda: None) if before else None
    sources = []
    for target, data in now.items():
        saved = {one.target: one for one in base.images}.get(target) if base else None
        of_disk = snapshot(data, before[1][target] if before and saved else None)
        source = MemorySource(of_disk, rbd_disk(target, f"vms/{target}"))
        if base and saved:
            source.base = Base("base", saved, base.checksums[target], b"")
        sources.append(source)
    disks = [source.disk for source in sources]
    taken = TAKEN + timedelta(days=RUNS.index(run))
    point = restore_point(domain(disks=disks), run, taken)
    return output.save(point, sources, job or JobOnPaper())


def complete(output: Output) -> Mapping[str, StoredPoint]:
    """Give the complete restore points by their runs."""
    return {one.id.run: one for one in output.restore_points() if one.manifest_id}


def read_back(output: Output, point: StoredPoint) -> Disks:
    """Give what a restore of a point writes."""
    found = {}
    for image in manifest.unpack(output.manifest(point)).images:
        with output.image(image, lambda: None) as source:
            buffer = bytearray(image.size)
            assert source.fill(memoryview(buffer)) == image.size
            assert source.fill(memoryview(bytearray(1))) == 0
        found[image.target] = bytes(buffer)
    return found
