"""The phases of a job, and the result that it ends with."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Optional

from .model import Consistency, Disk
from .stored import SavedImage


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
