"""The values that the engine works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import NamedTuple, Optional

from .errors import BackupError


class State(str, Enum):
    """What libvirt says a domain is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"  # to memory, by the guest itself
    CRASHED = "crashed"  # the guest; its QEMU is kept
    SAVED = "saved"  # shut off, its memory in a file of libvirt's (virsh managedsave)
    SHUT_OFF = "shut off"
    ELSEWHERE = "migrated away"  # its definition is still here, it runs on another node
    BUSY = "busy"  # migrating, starting, shutting down: another moment is better

    @property
    def active(self) -> bool:
        """Whether there is a QEMU that has the disks open."""
        return self not in (State.SAVED, State.SHUT_OFF, State.ELSEWHERE)


class Consistency(str, Enum):
    """How a restore point was taken."""

    FILESYSTEM = "filesystem"  # frozen through the guest agent
    PAUSED = "paused"  # processors held: all disks are of one instant
    CRASH = "crash"  # as the disks ran
    OFFLINE = "offline"  # shut off


@dataclass(frozen=True)
class Image:
    """An RBD image's place within its cluster.

    With its `id` it is found even after it was renamed; without, by its name.
    """

    pool: str
    name: str
    namespace: str = ""
    id: str = field(default="", compare=False)

    @property
    def place(self) -> str:
        """Where it lies: pool or pool/namespace."""
        return f"{self.pool}/{self.namespace}" if self.namespace else self.pool

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"


def image_named(text: str) -> Image | None:
    """Split pool/image or pool/namespace/image, None if it is neither. No part can hold a slash."""
    parts = text.split("/")
    if len(parts) == 2 and all(parts):
        return Image(parts[0], parts[1])
    if len(parts) == 3 and all(parts):
        return Image(parts[0], parts[2], namespace=parts[1])
    return None


@dataclass(frozen=True)
class ClusterAddress:
    """How a disk says its cluster is reached; what it does not say comes from CEPH_CONF.

    `fsid`, where it is known, is what the cluster has to have.
    """

    monitors: tuple[str, ...] = ()
    user: str = ""
    secret_uuid: str = ""
    secret_usage: str = ""
    conf_file: str = ""
    fsid: str = ""


class Gap(str, Enum):
    """What a restore point lacks for want of a disk that is not covered."""

    NONE = "none"  # nothing that was to be saved
    FOREIGN = "foreign"  # data that is on no RBD image
    BROKEN = "broken"  # an RBD image that can't be saved


@dataclass(frozen=True)
class Disk:
    """One disk of a domain, or a layer below it.

    `image` is None for what is not saved; `not_covered` and `gap` then say why, and what that costs.
    `encryption` is the format of an image whose content is encrypted, such as luks2.
    """

    target: str
    source: str
    image: Optional[Image] = None
    address: ClusterAddress = ClusterAddress()
    encryption: str = ""
    not_covered: str = ""
    gap: Gap = Gap.NONE


@dataclass(frozen=True)
class Override:
    """What a domain's own metadata says about its backup; None, "" and () where it says nothing."""

    enabled: Optional[bool] = None
    freeze: str = ""
    exclude: tuple[str, ...] = ()

    def excludes(self, target: str) -> bool:
        """Whether it leaves out the disk, or the disk that this is a layer of."""
        return bool({target, target.partition(".")[0]} & set(self.exclude))


@dataclass(frozen=True)
class Domain:
    """A libvirt virtual machine as it was when it was listed.

    `uri` is the libvirt that knows it. `problem` is what keeps it from being backed up by its definition
    alone. `instance` is libvirt's id while it runs, another each time that it is started.
    """

    uuid: str
    name: str
    state: State
    disks: tuple[Disk, ...]
    agent_connected: bool = False
    override: Override = Override()
    uri: str = ""
    problem: Optional[BackupError] = field(default=None, compare=False)
    instance: int = field(default=-1, compare=False)


@dataclass(frozen=True)
class Definition:
    """What libvirt needs to have the domain again."""

    inactive_xml: str
    live_xml: str = ""
    nvram_path: str = ""
    nvram: bytes = b""


@dataclass(frozen=True)
class Extent:
    """Bytes of an image that may hold data; what no extent covers is a hole and reads as zeros."""

    offset: int
    length: int


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


class Phase(str, Enum):
    """What a job is doing."""

    PREPARE = "preparing"  # connecting, locking, removing leftovers
    HOOKS = "running hooks"
    SNAPSHOT = "making snapshots"  # with the guest held still
    STREAM = "streaming"
    VERIFY = "verifying"
    RESTORE = "restoring"
    BOOT = "booting"
    TIDY = "tidying up"  # removing snapshots and the lock


class Status(str, Enum):
    """How a job ended."""

    SAVED = "saved"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Timeline:
    """When a job did what: in which of the run's lanes, 1 to WORKERS, and when each of its phases began."""

    lane: int
    started: datetime
    finished: datetime
    phases: tuple[tuple[Phase, datetime], ...]


@dataclass(frozen=True)
class JobResult:
    """How the backup of one domain ended. A failure that is `passing` is worth a second attempt.

    `frozen_at` is since when the domain was held still, `taken` the moment of its snapshots, `leftovers` how
    many snapshots of killed runs were found. `timeline` is there if it was begun.
    """

    name: str
    uuid: str
    status: Status
    reason: str = ""
    hint: str = ""
    consistency: Optional[Consistency] = None
    frozen_seconds: float = 0.0
    frozen_at: Optional[datetime] = None
    taken: Optional[datetime] = None
    seconds: float = 0.0
    images: tuple[SavedImage, ...] = field(default=())
    not_covered: tuple[Disk, ...] = field(default=())
    leftovers: int = 0
    timeline: Optional[Timeline] = None
    passing: bool = False


@dataclass(frozen=True)
class Finding:
    """Something that was looked at, and what is wrong with it, if anything is."""

    subject: str
    problem: Optional[BackupError] = None


class Level(int, Enum):
    """How much a message matters; the numbers are those of the journal (man 3 sd-daemon)."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7
