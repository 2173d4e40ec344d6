"""What a repository stores: restore points, their images, and what an incremental backup builds on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import NamedTuple, Optional, Protocol

from .model import Consistency, Definition, Disk, Domain

CLOCK_ERROR = timedelta(hours=12)  # of two nodes, at the most


def is_future(moment: datetime, now: Optional[datetime] = None) -> bool:
    """Return whether a time is later than any right clock has it: the clock that gave it was wrong."""
    return moment > (now or datetime.now(timezone.utc)) + CLOCK_ERROR


class Packed(Protocol):
    """Bytes that are read at any offset, as they may be too many for memory; see system/spool.py."""

    def __len__(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return these bytes, fewer only at the end. Raises OSError."""


@dataclass(frozen=True)
class RestorePoint:
    """The restore point that a job is about to save: everything but the images' bytes.

    `attempt` counts the attempts of the run at this domain, from 1. `locks` are the places
    ("FSID/pool/namespace") of the locks that the job holds.
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
    """Identifies a restore point: the run, the domain's UUID, and the run's attempt at this domain."""

    run: str
    uuid: str
    attempt: int = 1


@dataclass(frozen=True)
class Layout:
    """The layout of an image in its cluster: what `rbd create` takes besides name and size.

    `features` are rbd's names. `object_size` and `stripe_unit` are in bytes. `data_pool` is "" if the data
    is in the image's own pool.
    """

    object_size: int
    features: tuple[str, ...]
    stripe_unit: int
    stripe_count: int
    data_pool: str = ""


@dataclass(frozen=True)
class SnapshotId:
    """Identifies a snapshot by Ceph's own ids, which survive renames of the snapshot and of its image."""

    cluster: str = ""
    image: str = ""
    snapshot: int = 0


@dataclass(frozen=True)
class SavedImage:
    """An image that the output has stored completely. Sizes are in bytes.

    `data_bytes` were allocated, `read_bytes` were read in this run, `stored_bytes` is the growth of the
    repository: an output that saves all disks at once reports it for the first disk. `source` is the
    snapshot that was read. `segment_size` is the size of the image's files, 0 if it is one file. `full_read`
    is the time (ISO 8601) of the last full read, for outputs that read incrementally.
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
    """The content of a restore point's manifest: all that a restore needs, except the images' bytes.

    `skipped_disks` are those that were not saved, each with its reason. By target: `checksums` as packed by
    checksums.py, and `times`, when each segment of the image last changed, as packed by the output.
    """

    point: PointId
    name: str
    taken: datetime
    consistency: Consistency
    images: tuple[SavedImage, ...]
    skipped_disks: tuple[Disk, ...]
    definition: Definition
    checksums: Mapping[str, Packed]
    times: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"restore point of {self.taken:%Y-%m-%d %H:%M:%S} UTC, run {self.point.run}"

    @property
    def lacks(self) -> Sequence[str]:
        """What it lacks of the domain, in texts for an admin."""
        skipped = "; ".join(f"{disk}: {disk.skipped}" for disk in self.skipped_disks)
        others = [f"not in the backup: {text}" for text in self.definition.not_saved]
        return [f"skipped in the backup: {skipped}", *others] if skipped else others


@dataclass(frozen=True)
class Base:
    """What an incremental backup of an image builds on: the previous backup and its base snapshot's name.

    `checksums` and `times` are packed as in `SavedDomain`.
    """

    snapshot: str
    saved: SavedImage
    checksums: Packed
    times: bytes


@dataclass(frozen=True)
class StoredImage:
    """An image as an output lists it. `size` is in bytes, None if only the manifest has it.

    `original_id` is the id that it was saved with, if the output has given it another one since.
    """

    target: str
    image: str
    size: Optional[int]
    restore_id: str
    original_id: str = ""


@dataclass(frozen=True)
class StoredPoint:
    """A restore point as an output lists it. Without `manifest_id` it is incomplete, and does not count.

    An empty image is listed in the manifest only. `locks` are the places of the locks that its job held, ()
    if an older version saved it. `removed`: it was complete, and its removal was interrupted, so no run is
    saving it.
    """

    id: PointId
    domain: str
    taken: datetime
    consistency: str
    node: str
    images: tuple[StoredImage, ...]
    manifest_id: str
    locks: tuple[str, ...] = ()
    removed: bool = False


@dataclass(frozen=True)
class RepositoryKey:
    """A key that opens the repository for a password.

    `work` is what turning the password into it takes, as a number that does not depend on the node.
    """

    id: str
    opens: bool  # whether it opened the repository just now
    ours: bool  # whether this program added it
    fast: bool  # whether that costs next to nothing in each call
    owner: str  # user@host
    created: datetime  # on the clock of the node that added it
    work: int
    seconds: float  # on this node, in each call
