"""The values that the engine works with, and the protocols at its seams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Callable, Optional, Protocol

from .errors import BackupError


class State(str, Enum):
    """What libvirt says a domain is doing."""

    RUNNING = "running"
    PAUSED = "paused"
    SHUT_OFF = "shut off"
    ELSEWHERE = "migrated away"  # its definition is still here, it runs on another node
    BUSY = "busy"  # migrating, starting, shutting down: another moment is better


class Consistency(str, Enum):
    """How a restore point was taken."""

    FILESYSTEM = "filesystem"  # frozen through the guest agent
    PAUSED = "paused"  # processors held: all disks are of one instant
    CRASH = "crash"  # as the disks ran
    OFFLINE = "offline"  # shut off


@dataclass(frozen=True)
class Image:
    """An RBD image's place within its cluster."""

    pool: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.pool, self.namespace, self.name) if part)


@dataclass(frozen=True)
class ClusterAddress:
    """How a disk says its cluster is reached; what it does not say comes from CEPH_CONF."""

    monitors: tuple[str, ...] = ()
    user: str = ""
    secret_uuid: str = ""
    secret_usage: str = ""
    conf_file: str = ""


@dataclass(frozen=True)
class Disk:
    """One disk of a domain. `image` is None for everything that is no RBD image; `not_covered` says why."""

    target: str
    source: str
    image: Optional[Image] = None
    address: ClusterAddress = ClusterAddress()
    not_covered: str = ""


@dataclass(frozen=True)
class Domain:
    """A libvirt virtual machine as it was when it was listed."""

    uuid: str
    name: str
    state: State
    disks: tuple[Disk, ...]
    agent_connected: bool = False


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


class SnapshotReader(Protocol):
    """A snapshot of an image, open for reading. `size` is in bytes."""

    size: int

    def extents(self) -> Iterator[Extent]:
        """Yield what is allocated, in ascending order and without overlaps."""

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        """Start to read; the returned call waits for the bytes, exactly `length` of them."""


class SnapshotSource(Protocol):
    """A disk's snapshot that an output can open when its turn comes."""

    @property
    def disk(self) -> Disk: ...

    @property
    def image(self) -> Image: ...

    def open(self) -> AbstractContextManager[SnapshotReader]: ...


@dataclass(frozen=True)
class RestorePoint:
    """What one run saves of one domain: everything but the images' bytes."""

    run: str
    host: str
    taken: datetime
    domain: Domain
    definition: Definition
    consistency: Consistency
    frozen_seconds: float


@dataclass(frozen=True)
class SavedImage:
    """An image whose every byte the output has."""

    target: str
    image: str
    size: int
    data_bytes: int
    stored_bytes: int
    seconds: float
    restore_id: str


class Status(str, Enum):
    """How a job ended."""

    SAVED = "saved"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class JobResult:
    """How the backup of one domain ended."""

    name: str
    uuid: str
    status: Status
    reason: str = ""
    hint: str = ""
    consistency: Optional[Consistency] = None
    frozen_seconds: float = 0.0
    seconds: float = 0.0
    images: tuple[SavedImage, ...] = field(default=())


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


class Reporter(Protocol):
    """Takes what the engine has to say. The domain's name is "" for the run as a whole."""

    def message(self, level: Level, domain: str, text: str) -> None: ...

    def progress(self, domain: str, target: str, done: int, size: int) -> None: ...


class Job(Protocol):
    """What an output may ask of the job that it works for."""

    reporter: Reporter

    def check_stop(self) -> None:
        """Raise if the job has to end; called at every place where it safely can."""


class Output(Protocol):
    """A destination of backups. Instances are pickled on their way to the workers."""

    def configuration_errors(self) -> Sequence[BackupError]:
        """What of the settings alone cannot work, without a look at the destination."""

    def problems(self) -> Sequence[BackupError]:
        """What keeps the destination from taking a backup now."""

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        """Save every image and then, last, the manifest that makes them a restore point.

        Raises BackupError, and has then left nothing that counts as a restore point.
        """

    def discard_incomplete(self, run: str, patient: bool) -> None:
        """Remove what the run saved of domains whose restore points did not come about.

        `patient`: wait for a while if the destination is busy. Raises BackupError.
        """
