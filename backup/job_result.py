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
    SNAPSHOT = "making snapshots"  # the guest is frozen or paused
    STREAM = "streaming"
    VERIFY = "verifying"
    RESTORE = "restoring"
    BOOT = "booting"
    MOVE = "moving the guest"  # from the overlays of an instant restore to the restored images
    TIDY = "tidying up"  # removing snapshots and the lock


class Status(str, Enum):
    """The end of a job."""

    SAVED = "saved"
    FAILED = "failed"
    SKIPPED = "skipped"


NOT_BEGUN = "interrupted before it began"  # why a stop of the run skipped a domain


@dataclass(frozen=True)
class Timeline:
    """When a job ran, in which of the run's lanes (1 to WORKERS), and when each of its phases began."""

    lane: int
    started: datetime
    finished: datetime
    phases: tuple[tuple[Phase, datetime], ...]


@dataclass(frozen=True)
class JobResult:
    """The result of the backup of one domain. A `transient` failure is retried.

    `frozen_at` is when the guest was frozen or paused, `taken` the time of its snapshots, `leftovers` the
    number of snapshots that interrupted runs had left. `timeline` is None if the job never started.
    `full_read`: a retry must not build on the previous backup. `withdraw`: it failed while the output saved,
    which may have a restore point of it that must not count. `freeze_failed`: the freeze failed.
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
    skipped_disks: tuple[Disk, ...] = field(default=())
    leftovers: int = 0
    timeline: Optional[Timeline] = None
    transient: bool = False
    full_read: bool = False
    withdraw: bool = False
    freeze_failed: bool = False
