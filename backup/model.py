"""The values that describe domains: their disks, images, clusters and definitions."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Optional

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
