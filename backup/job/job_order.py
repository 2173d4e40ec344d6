"""The order that a worker gets: the backup of one domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Optional

from ..stored import StoredPoint


@dataclass(frozen=True)
class JobOrder:
    """The order for one job.

    `uri` is the libvirt that listed the domain; `min_age` the least age of its last backup, in seconds.
    `verify`: compare each saved image with its snapshot before that is removed. `known` are the domain's
    complete restore points as the run listed them, before its first job. `size`: the bytes that the job will
    read, for progress; 0 if unknown. `attempt`: 2 and more for retries within a run. `full_read`: do not
    build on the previous backup. `last_saved`: the time of the newest restore point in that list, if any.
    `freeze_failed`: in an earlier attempt the freeze failed, and the guest could not be thawed in time.
    """

    run: str
    name: str
    uuid: str
    uri: str = ""
    min_age: int = 0
    verify: bool = False
    known: Sequence[StoredPoint] = ()
    size: int = 0
    attempt: int = 1
    full_read: bool = False
    freeze_failed: bool = False
    last_saved: Optional[datetime] = None
