"""Removes locks that our own killed restics left in a repository; other locks stay.

`restic unlock` is no alternative: it considers a lock dead if another host has the same name, or if its owner
is in another namespace or belongs to another user, and it sends the owner a real SIGHUP. Where it is the only
way, as the repository is not on this node, it is called if it certainly leaves all other locks: those that
other hosts have taken or renewed lately. One that such an owner makes between our list and restic's own would
be lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from socket import gethostname
from time import time
from typing import Callable, Optional

from backup.errors import reason
from backup.system.child_records import ChildRecord
from backup.system.process_group import pid_in_use

from .child import LOCKS
from .messages import ResticError
from .own_directory import OwnDirectory
from .program import Program
from .snapshots import moment

CLOCK = 2.0  # maximum difference in seconds between the times in a lock and in its record
UNLOCK_LIMIT = 600.0  # seconds for `restic unlock`
# Seconds. It removes locks of other hosts when they are half an hour old (restic's lock.go, Stale), by this
# node's clock, and may look at them as late as its limit allows.
FRESH = 30 * 60 - UNLOCK_LIMIT - 60


@dataclass(frozen=True)
class Lock:
    """A lock in the repository. Without details if it was removed while it was read, or is damaged."""

    identity: str
    host: str = ""
    pid: int = 0
    uid: int = 0
    exclusive: bool = False
    taken: Optional[datetime] = None

    def __str__(self) -> str:
        when = f" of {self.taken:%Y-%m-%d %H:%M:%S} UTC" if self.taken else ""
        return f"{self.identity[:8]}{when} (PID {self.pid} on {self.host or 'an unknown host'})"


def remove_dead_locks(program: Program, check_stop: Callable[[], None]) -> Sequence[Lock]:
    """Remove the locks of recorded restics that are provably dead, and erase the records.

    Where restic's only command for it might remove others too, all locks are returned and none is removed.
    Without such records the repository is not asked. Raises ResticError.
    """
    dead = _dead(program)
    if not dead:
        return ()
    locks = _listed(program, check_stop) if OwnDirectory(program, check_stop).may_have_locks else ()
    ours = [lock for lock in locks if any(left_by(one, lock) for one in dead)]
    removed = _removed(program, ours, locks, check_stop) if ours else True
    for one in dead:
        if removed or not any(left_by(one, lock) for lock in ours):
            _erase(program, one)
    return () if removed else locks


def left_by(one: ChildRecord, lock: Lock) -> bool:
    """Return whether a lock is the dead restic's: same host, user, pid and kind, and a time in its lifetime.

    A lock that is held for long is rewritten every five minutes with a new time.
    """
    if not lock.taken or lock.exclusive != (one.leaves == LOCKS["forget"]):
        return False
    taken = lock.taken.timestamp()
    in_time = one.began - CLOCK <= taken and (one.ended is None or taken <= one.ended + CLOCK)
    return in_time and (lock.host, lock.uid) == (one.host, one.uid) and lock.pid in one.pids


def _dead(program: Program) -> Sequence[ChildRecord]:
    """Return the dead that may have left a lock in this repository.

    Records of earlier boots are erased, as they prove nothing.
    """
    if not program.records:
        return ()
    found = [one for one in program.records.read() if one.leaves]
    for one in found:
        if not one.of_this_boot:
            program.records.erase(one)
    here = [one for one in found if one.place in ("", program.place)]
    return [one for one in here if one.of_this_boot and one.dead]


def _erase(program: Program, one: ChildRecord) -> None:
    if program.records:
        program.records.erase(one)


def _listed(program: Program, check_stop: Callable[[], None]) -> Sequence[Lock]:
    """Read all locks, without taking one."""
    return [_lock(program, identity, check_stop) for identity in _identities(program, check_stop)]


def _identities(program: Program, check_stop: Callable[[], None]) -> Sequence[str]:
    printed = program.call("list", "locks", "--no-lock", limit=program.call_limit, check_stop=check_stop)
    return re.findall(r"^[0-9a-f]{64}$", printed, re.MULTILINE)


def _lock(program: Program, identity: str, check_stop: Callable[[], None]) -> Lock:
    """Read a lock. Raises ResticError if it cannot be read now: it may be ours."""
    arguments = ("cat", "lock", identity, "--no-lock")
    try:
        printed = program.call(*arguments, limit=program.call_limit, check_stop=check_stop)
    except ResticError as error:
        if not error.damaged and identity in _identities(program, check_stop):
            raise
        return Lock(identity)
    try:
        read = json.loads(printed)
        return Lock(
            identity,
            str(read["hostname"]),
            int(read["pid"]),
            int(read.get("uid", 0)),  # restic leaves out a 0
            bool(read["exclusive"]),
            moment(read["time"]),
        )
    except (ValueError, KeyError, TypeError):  # of another version: not ours
        return Lock(identity)


def _removed(
    program: Program, ours: Sequence[Lock], locks: Collection[Lock], check_stop: Callable[[], None]
) -> bool:
    """Remove these locks if that touches no others, and return whether it did."""
    own = OwnDirectory(program, check_stop)
    if directory := own.locks:
        own.answer(partial(_unlink, directory, ours))
        return True
    if any(pid_in_use(lock.pid) for lock in ours):
        return False
    if not all(lock in ours or _is_left_alone(lock) for lock in locks):
        return False
    if not {*_identities(program, check_stop)} <= {lock.identity for lock in locks}:
        return False
    # It removes locks that are older than half an hour, or have this host's name and the PID of no process:
    # ours do. A lock that is created right now stays, unlike with --remove-all.
    program.call("unlock", "--quiet", limit=min(UNLOCK_LIMIT, program.call_limit), check_stop=check_stop)
    return True


def _is_left_alone(lock: Lock) -> bool:
    """Return whether `restic unlock` certainly leaves a lock, whether its owner lives or not."""
    if not lock.taken or not lock.host or lock.host == gethostname():
        return False
    return time() - lock.taken.timestamp() < FRESH


def _unlink(directory: Path, locks: Sequence[Lock]) -> None:
    for lock in locks:
        try:
            with suppress(FileNotFoundError):
                (directory / lock.identity).unlink()
        except OSError as error:
            message = f"cannot remove {directory / lock.identity}, the lock of a dead restic: {reason(error)}"
            raise ResticError(message, "remove that file by hand") from error
