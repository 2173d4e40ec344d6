"""What a repository stores: restore points, their images, and what an incremental backup builds on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Optional

from .model import Consistency, Definition, Domain


@dataclass(frozen=True)
class RestorePoint:
    """What one run saves of one domain: everything but the images' bytes.

    `attempt` is the how many-eth of the run, from 1. `locks` are the places ("FSID/pool/namespace") of the
    locks that its job holds.
    """

    run: str
    host: str
    taken: datetime
    domain: Domain
    definition: Definition
    consistency: Consistency
    frozen_seconds: float
    attempt: int = 1
    locks: tuple[str, ...] = ()


class PointId(NamedTuple):
    """What distinguishes a restore point: its run, its domain's uuid, which attempt of the run's."""

    run: str
    uuid: str
    attempt: int = 1


@dataclass(frozen=True)
class Layout:
    """How an image lies in its cluster: what `rbd create` wants to know beside name and size.

    `features` are rbd's names. `object_size` and `stripe_unit` are in bytes. `data_pool` is "" where the
    data lies in the image's own pool.
    """

    object_size: int
    features: tuple[str, ...]
    stripe_unit: int
    stripe_count: int
    data_pool: str = ""


@dataclass(frozen=True)
class SnapshotId:
    """What tells a snapshot from all others, whatever it and its image are called by now: Ceph's own ids."""

    cluster: str = ""
    image: str = ""
    snapshot: int = 0


@dataclass(frozen=True)
class SavedImage:
    """An image whose every byte the output has. Sizes in bytes.

    `data_bytes` is what of it was allocated, `read_bytes` what was read this time, `stored_bytes` what the
    output grew by: for an output that saves all disks at once, the first of them has it all. `source` is the
    snapshot that it was read from. `segment_size` is that of its files, 0 where it is one file; `full_read`
    when (ISO 8601) all of it was last read, for outputs that do not read all each time.
    """

    target: str
    image: str
    size: int
    data_bytes: int
    stored_bytes: int
    seconds: float
    restore_id: str
    layout: Layout
    read_bytes: int = 0
    source: SnapshotId = SnapshotId()
    segment_size: int = 0
    full_read: str = ""


@dataclass(frozen=True)
class SavedDomain:
    """What a restore point's manifest says: all that it takes to have the domain again, but for the bytes.

    `not_covered` are the targets of disks that were not saved, `checksums` by target what checksums.py packs,
    `times` by target when each segment of an image last changed, as the output packs it.
    """

    point: PointId
    name: str
    taken: datetime
    consistency: Consistency
    images: tuple[SavedImage, ...]
    not_covered: tuple[str, ...]
    definition: Definition
    checksums: Mapping[str, bytes]
    times: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """What an incremental backup of an image builds on: the previous backup and its base snapshot's name.

    `checksums` and `times` are packed as in `SavedDomain`.
    """

    snapshot: str
    saved: SavedImage
    checksums: bytes
    times: bytes


@dataclass(frozen=True)
class HeldImage:
    """An image as an output lists it. `size` in bytes, None where the manifest alone tells.

    `original_id` is what it was saved as, where the output has given it another id since.
    """

    target: str
    image: str
    size: Optional[int]
    restore_id: str
    original_id: str = ""


@dataclass(frozen=True)
class HeldPoint:
    """A restore point as an output lists it; without `manifest_id` it is not complete, and does not count.

    An image of no bytes is in the manifest alone. `locks` are the places of the locks under which it was
    saved, () where an older version did it.
    """

    id: PointId
    domain: str
    taken: datetime
    consistency: str
    node: str
    images: tuple[HeldImage, ...]
    manifest_id: str
    locks: tuple[str, ...] = ()
