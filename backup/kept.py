"""Snapshots that are kept from one run to the next, so that the next reads only what has changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Optional

from .base import Base
from .checksums import Checksums
from .model import Domain, SavedDomain, SnapshotId
from .protocols import Output
from .snapshots import DiskSnapshot, kept_prefix, owned_prefix, run_of


def based(snapshots: Sequence[DiskSnapshot], domain: Domain, output: Output) -> Sequence[DiskSnapshot]:
    """Give the snapshots that are to be made, each with what its backup can build on.

    That is the newest restore point in the output of which a snapshot is still there: both were taken at the
    same moment by the same run, or all of the image is read. Only for the holder of the domain's lock. Raises
    BackupError.
    """
    held = [_ours(snapshot, domain.uuid) for snapshot in snapshots]
    runs = {run_of(name) for names in held for name in names}
    saved = output.base(domain.uuid, runs) if runs else None
    if not saved:
        return snapshots
    return [replace(one, base=_base(one, names, saved)) for one, names in zip(snapshots, held)]


def _ours(snapshot: DiskSnapshot, uuid: str) -> Mapping[str, int]:
    """Give the ids of our snapshots of the image by their names: kept ones, and what killed runs left."""
    prefixes = (owned_prefix(uuid), kept_prefix(uuid))
    every = snapshot.cluster.snapshot_ids(snapshot.image)
    return {name: number for name, number in every.items() if name.startswith(prefixes)}


def _base(snapshot: DiskSnapshot, held: Mapping[str, int], saved: SavedDomain) -> Optional[Base]:
    image = snapshot.image.id or snapshot.image.name
    sources = {SnapshotId(snapshot.cluster.fsid, image, number): name for name, number in held.items()}
    for one in saved.images:
        if one.target == snapshot.disk.target and one.source in sources:
            checksums = Checksums(bytearray(saved.checksums[one.target]))
            return Base(sources[one.source], one, checksums, saved.times.get(one.target, b""))
    return None
