"""Records in RUNTIME_DIR of the programs that were started.

With them a later process can end orphaned programs, or prove that a program is dead. A record exists while
its program runs, and longer if the program may have left something behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Optional

from .atomic_file import write_whole
from .process_group import Group, Life, life_of, lives, numbers_are_ours, pid_in_use, pid_namespace

DIRECTORY = "restic"  # in RUNTIME_DIR; only the output's programs are recorded
ORPHAN_LIMIT = 20.0  # seconds between SIGINT and SIGKILL for a program whose starter is dead
# Seconds between checks for new members of the group; the last one repeats.
MEMBERS_PAUSES = 0.05, 0.1, 0.3, 1.0, 3.0, 10.0


@dataclass(frozen=True)
class ChildRecord:
    """A program that was started, its starter, and the boot and namespace in which their pids are valid.

    `members` are other processes that were seen in the group of `leader`. `uid`, `host` and the times, in
    seconds since 1970, are as the program itself sees them: it started after `began` and had ended by
    `ended`, which is None unless it is known to have failed. `leaves`: the kind of thing that it may leave
    behind, "" for nothing.
    """

    leader: Life
    starter: Life
    session: int
    boot: str
    namespace: int
    uid: int
    host: str
    began: float
    leaves: str = ""
    members: tuple[Life, ...] = ()
    ended: Optional[float] = None

    @classmethod
    def for_child(cls, pid: int, leaves: str, began: float) -> ChildRecord:
        """Describe a child of this process that leads a group and was started after `began`.

        Raises OSError.
        """
        return cls(
            leader=life_of(pid),
            starter=life_of(os.getpid()),
            session=os.getsid(0),
            boot=_boot(),
            namespace=pid_namespace(),
            uid=os.getuid(),
            host=socket.gethostname(),
            began=began,
            leaves=leaves,
        )

    @property
    def group(self) -> Group:
        return Group(self.leader, self.session)

    @property
    def pids(self) -> Sequence[int]:
        return [self.leader.pid, *(member.pid for member in self.members)]

    @property
    def of_this_boot(self) -> bool:
        return self.boot == _boot()

    @property
    def visible(self) -> bool:
        """Whether its pids are valid for this process: same boot, same namespace."""
        return self.of_this_boot and self.namespace == pid_namespace() and numbers_are_ours()

    @property
    def dead(self) -> bool:
        """Whether provably all its processes have ended."""
        if not self.visible or any(map(lives, (self.leader, *self.members))) or self.group.members():
            return False
        return self.ended is not None or not any(map(pid_in_use, self.pids))

    @property
    def orphaned(self) -> bool:
        """Whether its starter is provably dead."""
        return self.visible and not lives(self.starter)


class Records:
    """The records in a directory, one file per program."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, one: ChildRecord) -> None:
        """Write a record, replacing an earlier one. Raises OSError."""
        # each with the mode: `parents` alone would give RUNTIME_DIR another one, which a run then refuses
        for directory in (self.directory.parent, self.directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # not durable: after a reboot it proves nothing
        write_whole(self._path(one), json.dumps(asdict(one)).encode(), durable=False)

    def erase(self, one: ChildRecord) -> None:
        with suppress(OSError):  # a record that stays is no harm: it matches no other program
            self._path(one).unlink()

    def read(self) -> Iterator[ChildRecord]:
        """Yield all readable records; others prove nothing."""
        for path in sorted(self.directory.glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                yield _started(json.loads(path.read_bytes()))

    def _path(self, one: ChildRecord) -> Path:
        return self.directory / f"{one.leader.pid}-{one.leader.began}.json"


class Recording:
    """Maintains the record of a running program, adding the members of its group as they appear."""

    def __init__(self, records: Records, one: ChildRecord) -> None:
        """Write the record. Raises OSError."""
        self._records = records
        self._one = one
        records.write(one)
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="members", daemon=True)
        if one.leaves:
            self._watching.start()

    def end(self, clean: bool) -> None:
        """Erase the record if the program ended and left nothing; else record its end."""
        self._over.set()
        if self._one.leaves:
            self._watching.join()
        if clean or not self._one.leaves:
            self._records.erase(self._one)
        else:
            with suppress(OSError):  # the old record is still valid
                self._records.write(replace(self._one, ended=time.time()))

    def _watch(self) -> None:
        for pause in chain(MEMBERS_PAUSES, repeat(MEMBERS_PAUSES[-1])):
            if self._over.wait(pause):
                break
            with suppress(OSError):  # retried at the next check
                self._add_members()

    def _add_members(self) -> None:
        known = {self._one.leader, *self._one.members}
        new = tuple(one for one in self._one.group.members() if one not in known)
        if new:
            self._one = replace(self._one, members=(*self._one.members, *new))
            self._records.write(self._one)


def records_in(runtime_dir: str) -> Records:
    return Records(Path(runtime_dir, DIRECTORY))


def end_orphans(runtime_dir: str, limit: float = ORPHAN_LIMIT) -> int:
    """End all recorded programs whose starter is dead, and return how many were running.

    They get SIGINT, and SIGKILL after `limit` seconds. Records of those that may have left something behind
    stay.
    """
    records = records_in(runtime_dir)
    orphans = [one for one in records.read() if one.ended is None and one.orphaned]
    found = [(one, members) for one in orphans if (members := one.group.members())]
    for one, _ in found:
        one.group.send(signal.SIGINT)
    deadline = time.monotonic() + limit
    for one, members in found:
        if not one.group.ended(max(deadline - time.monotonic(), 0)):
            one.group.send(signal.SIGKILL)
            one.group.ended(limit)  # for the kernel
        _ended(records, one, members)
    for one in orphans:
        if not one.leaves:
            records.erase(one)
    return len(found)


def _ended(records: Records, one: ChildRecord, members: Sequence[Life]) -> None:
    others = dict.fromkeys((*one.members, *(life for life in members if life != one.leader)))
    with suppress(OSError):
        records.write(replace(one, members=tuple(others), ended=time.time()))


def _started(read: dict[str, Any]) -> ChildRecord:
    lives_read = {name: Life(*read[name]) for name in ("leader", "starter")}
    return ChildRecord(**{**read, **lives_read, "members": tuple(Life(*one) for one in read["members"])})


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
