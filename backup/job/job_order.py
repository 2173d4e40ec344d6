"""What a worker is ordered to do: the backup of one domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..stored import StoredPoint


@dataclass(frozen=True)
class JobOrder:
    """What a worker is told to do.

    `uri` is the libvirt that listed the domain; `min_age`, in seconds, the age that its last backup has
    to have. `verify`: hold each image against its snapshot before that is removed. `known` are the domain's
    complete restore points as the run listed them, before its first job. `size`: the bytes that this will
    pass along, for whoever watches; 0 if that is not known. `attempt`: 2 and more for retries in a run.
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
