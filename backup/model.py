"""The values that describe domains: their disks, images, clusters and definitions."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

from .errors import BackupError


class State(str, Enum):
    """The state of a domain, from libvirt."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"  # to memory, by the guest itself
    CRASHED = "crashed"  # the guest; its QEMU still exists
    SAVED = "saved"  # shut off, with its memory saved to a file (virsh managedsave)
    SHUT_OFF = "shut off"
    ELSEWHERE = "migrated away"  # still defined here, but runs on another node
    BUSY = "busy"  # migrating, starting or shutting down

    @property
    def active(self) -> bool:
        """Whether a QEMU process has the disks open."""
        return self not in (State.SAVED, State.SHUT_OFF, State.ELSEWHERE)


class Consistency(str, Enum):
    """The consistency of a restore point."""

    FILESYSTEM = "filesystem"  # frozen through the guest agent
    PAUSED = "paused"  # processors paused: all disks show the same instant
    CRASH = "crash"  # neither: each disk shows its own instant
    OFFLINE = "offline"  # shut off


OVERLAY = ".virt-rbd-backup.overlay"  # suffix of the image with a guest's writes during an instant restore


@dataclass(frozen=True)
class Image:
    """An RBD image within its cluster: found by its `id` if that is known, even if renamed, else by name.

    `data_pool` is where its data is, "" if that is its pool, or if its id is not known.
    """

    pool: str
    name: str
    namespace: str = ""
    id: str = field(default="", compare=False)
    data_pool: str = field(default="", compare=False)

    @property
    def place(self) -> str:
        """Its pool or pool/namespace."""
        return f"{self.pool}/{self.namespace}" if self.namespace else self.pool

    @property
    def overlay(self) -> Image:
        """The image with what the guest writes while this one is restored below it."""
        return Image(self.pool, self.name + OVERLAY, self.namespace)

    @property
    def is_overlay(self) -> bool:
        return self.name.endswith(OVERLAY)

    def __str__(self) -> str:
        return f"{self.place}/{self.name}"


def image_named(text: str) -> Image | None:
    """Parse pool/image or pool/namespace/image; None if it is neither. No part can contain a slash."""
    parts = text.split("/")
    if len(parts) == 2 and all(parts):
        return Image(parts[0], parts[1])
    if len(parts) == 3 and all(parts):
        return Image(parts[0], parts[2], namespace=parts[1])
    return None


@dataclass(frozen=True)
class ClusterAddress:
    """How to reach the cluster of a disk, from the domain's XML; what that leaves open is in CEPH_CONF.

    `fsid`, if known, is the id that the cluster must have.
    """

    monitors: tuple[str, ...] = ()
    user: str = ""
    secret_uuid: str = ""
    secret_usage: str = ""
    conf_file: str = ""
    fsid: str = ""


@dataclass(frozen=True)
class ParentSnapshot:
    """A snapshot of which clones can be made: Ceph's configuration file, the cephx user, and its place."""

    conf_file: str
    user: str
    image: Image
    snapshot: str


class Gap(str, Enum):
    """What a restore point lacks because a disk is skipped."""

    NONE = "none"  # nothing that should have been saved
    FOREIGN = "foreign"  # data that is not on an RBD image
    BROKEN = "broken"  # an RBD image that cannot be backed up


# Targets of what is no disk, where it has no name.
KINDS = ("nvram", "tpm", "pstore", "shmem", "memory", "filesystem", "hostdev")


@dataclass(frozen=True)
class Disk:
    """One disk of a domain, a layer of its backing chain, or another device that holds data.

    `target` is the disk's, such as vda; vda.backing1 of a layer; vda.next of what the next start puts in its
    place; KIND:NAME of another device.
    `image` is None if it is not backed up: `skipped` is the reason, `gap` what the restore point lacks.
    `encryption` is the format of an encrypted image, such as luks2. `shared`: other domains may have it too.
    `client` names what has the image open as a writer while the domain runs: its disk, for which QEMU opens
    it so even if it only reads, or a mapped device; "" if nothing has. `written`: it has it open for sure.
    `needs_header`: only the header of the image (qcow2) has the name of a layer below it, if there is one.
    """

    target: str
    source: str
    image: Optional[Image] = None
    address: ClusterAddress = ClusterAddress()
    encryption: str = ""
    skipped: str = ""
    gap: Gap = Gap.NONE
    shared: bool = field(default=False, compare=False)
    client: str = field(default="", compare=False)
    written: bool = field(default=False, compare=False)
    needs_header: bool = field(default=False, compare=False)

    @property
    def empty(self) -> bool:
        """Whether it is a drive without a medium."""
        return not self.image and not self.source and self.gap is Gap.NONE

    @property
    def counts(self) -> bool:
        """Whether it has data that a restore point should have."""
        return self.image is not None or self.gap is not Gap.NONE

    def __str__(self) -> str:
        titled = ":" in self.target or self.target.partition(".")[0] in KINDS
        title = self.target if titled else f"disk {self.target}"
        return f"{title} ({self.source})" if self.source else title


@dataclass(frozen=True)
class Override:
    """The settings in a domain's own metadata; None, "" and () where it has none."""

    enabled: Optional[bool] = None
    freeze: str = ""
    exclude: tuple[str, ...] = ()

    def excludes(self, target: str) -> bool:
        """Whether it excludes this disk, or the disk that this is a layer of."""
        return bool({target, target.partition(".")[0]} & set(self.exclude))


@dataclass(frozen=True)
class Domain:
    """A libvirt virtual machine as it was when it was listed.

    `uri` is the libvirt that listed it. `problem` is an error in its definition that prevents a backup.
    `instance` is libvirt's id of the running domain, which changes with each start.
    `agent_channel`: it has a channel for a guest agent. `started` is the time (time.time()) of the start of a
    running domain with such a channel, None if it is unknown.
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
    agent_channel: bool = field(default=True, compare=False)
    started: Optional[float] = field(default=None, compare=False)


TPM_STATE = "TPM state"  # the use of a file that swtpm has written


@dataclass(frozen=True)
class NodeFile:
    """A file of the node that a domain has or needs besides its images, with its content.

    `use` is what the domain has it for, such as kernel or TPM_STATE. `owner` is USER:GROUP, "" if unknown.
    """

    use: str
    path: str
    content: bytes = field(repr=False)
    mode: int = 0o600
    owner: str = ""


@dataclass(frozen=True)
class Definition:
    """What libvirt needs to define the domain again, and to start it.

    `autostart` is None if an older version saved it. `not_saved` is what libvirt has of the domain besides:
    a text for each. `files` are those that the domain boots from or needs, and its TPM's state.
    """

    inactive_xml: str
    live_xml: str = ""
    nvram_path: str = ""
    nvram: bytes = b""
    autostart: Optional[bool] = None
    not_saved: tuple[str, ...] = ()
    files: tuple[NodeFile, ...] = ()


@dataclass(frozen=True)
class Extent:
    """A range of an image that may contain data; all outside of extents is a hole, which reads as zeros."""

    offset: int
    length: int


@dataclass(frozen=True)
class Finding:
    """Something that was checked, and the problem with it, if any.

    `warning`: it does not prevent backups, but an admin has to know it.
    """

    subject: str
    problem: Optional[BackupError] = None
    warning: bool = False


class Level(int, Enum):
    """The priority of a message; the numbers are those of the journal (man 3 sd-daemon)."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7
