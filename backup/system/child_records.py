"""Records in RUNTIME_DIR of the programs that were started.

With them a later process can end orphans, or prove that a program is dead. A record exists while its program
runs, and longer if the program may have left something behind.
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
from typing import Any, Callable, Optional

from .atomic_file import write_atomically
from .private_directory import make_private
from .process_group import Group, ProcessId, is_running, pid_in_use, pid_namespace, process_id, sees_own_pids

DIRECTORY = "restic"  # in RUNTIME_DIR; only the output's programs are recorded
ORPHAN_LIMIT = 20.0  # seconds that an orphan may take to end after SIGINT
# Seconds between two listings of the group's members; the last one repeats.
MEMBERS_PAUSES = 0.05, 0.1, 0.3, 1.0, 3.0, 10.0


@dataclass(frozen=True)
class ChildRecord:
    """A program that was started, by which process, and in which boot and PID namespace.

    `leader` is the program, `members` are other processes seen in its group. `uid`, `host` and the times
    (seconds since 1970) are as the program itself sees them: it started after `began`, and a failed end was
    seen at `ended`, else None. `leaves` is what the program may leave behind, "" for nothing; `place` names
    where, "" if it is not known.
    """

    leader: ProcessId
    starter: ProcessId
    session: int
    boot: str
    namespace: int
    uid: int
    host: str
    began: float
    leaves: str = ""
    members: tuple[ProcessId, ...] = ()
    ended: Optional[float] = None
    place: str = ""

    @classmethod
    def for_child(cls, pid: int, leaves: str, began: float, place: str = "") -> ChildRecord:
        """Describe a child of this process that leads a process group, started after `began`.

        Raises OSError.
        """
        return cls(
            leader=process_id(pid),
            starter=process_id(os.getpid()),
            session=os.getsid(0),
            boot=_boot(),
            namespace=pid_namespace(),
            uid=os.getuid(),
            host=socket.gethostname(),
            began=began,
            leaves=leaves,
            place=place,
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
        """Whether its PIDs are valid for this process: the same boot and PID namespace."""
        return self.of_this_boot and self.namespace == pid_namespace() and sees_own_pids()

    @property
    def dead(self) -> bool:
        """Whether provably none of its processes runs."""
        if not self.visible or any(map(is_running, (self.leader, *self.members))) or self.group.members():
            return False
        return self.ended is not None or not any(map(pid_in_use, self.pids))

    @property
    def orphaned(self) -> bool:
        """Whether the process that started it is provably dead."""
        return self.visible and not is_running(self.starter)


class Records:
    """The records in a directory, one file per program."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, one: ChildRecord) -> None:
        """Write or replace a record. Raises OSError."""
        make_private(self.directory)
        # not durable: after a reboot it proves nothing
        write_atomically(self._path(one), json.dumps(asdict(one)).encode(), durable=False)

    def erase(self, one: ChildRecord) -> None:
        with suppress(OSError):  # a record that stays proves nothing about other programs
            self._path(one).unlink()

    def read(self) -> Iterator[ChildRecord]:
        """Yield the records that can be read; others prove nothing."""
        for path in sorted(self.directory.glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                yield _started(json.loads(path.read_bytes()))

    def _path(self, one: ChildRecord) -> Path:
        return self.directory / f"{one.leader.pid}-{one.leader.began}.json"


class Recording:
    """Maintains the record of a running program, and adds new members of its group."""

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
        """Erase the record if the program left nothing behind; else record when it ended."""
        self._over.set()
        if self._one.leaves:
            self._watching.join()
        if clean or not self._one.leaves:
            self._records.erase(self._one)
        else:
            with suppress(OSError):  # the old record still proves as much
                self._records.write(replace(self._one, ended=time.time()))

    def _watch(self) -> None:
        for pause in chain(MEMBERS_PAUSES, repeat(MEMBERS_PAUSES[-1])):
            if self._over.wait(pause):
                break
            with suppress(OSError):  # the next listing may work
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
    """End all recorded programs that outlived the process that started them; return their number.

    They are interrupted, and killed after `limit` seconds. Records of programs that may have left something
    behind stay.
    """
    return _end(lambda one: one.orphaned, records_in(runtime_dir), limit)


def begin_to_end_orphans(runtime_dir: str) -> None:
    """End orphans in a thread, as it takes a while; the process waits for it at its end.

    Where no thread can be started, at the limit of processes, the watchdog or the next run ends them.
    """
    with suppress(RuntimeError):
        threading.Thread(target=end_orphans, args=(runtime_dir,), name="orphans").start()


def end_programs_of(pid: int, runtime_dir: str, limit: float = ORPHAN_LIMIT) -> int:
    """Do the same for the programs of a child that was killed, but does not end."""
    return _end(lambda one: one.visible and one.starter.pid == pid, records_in(runtime_dir), limit)


def _end(which: Callable[[ChildRecord], bool], records: Records, limit: float) -> int:
    ownerless = [one for one in records.read() if one.ended is None and which(one)]
    found = [(one, members) for one in ownerless if (members := one.group.members())]
    for one, _ in found:
        one.group.interrupt("restic")
    deadline = time.monotonic() + limit
    for one, members in found:
        if not one.group.ended(max(deadline - time.monotonic(), 0)):
            one.group.send(signal.SIGKILL)
            one.group.ended(limit)  # for the kernel to remove them
        _record_end(records, one, members)
    for one in ownerless:
        if not one.leaves:
            records.erase(one)
    return len(found)


def _record_end(records: Records, one: ChildRecord, members: Sequence[ProcessId]) -> None:
    others = dict.fromkeys((*one.members, *(member for member in members if member != one.leader)))
    with suppress(OSError):
        records.write(replace(one, members=tuple(others), ended=time.time()))


def _started(read: dict[str, Any]) -> ChildRecord:
    processes = {name: ProcessId(*read[name]) for name in ("leader", "starter")}
    return ChildRecord(**{**read, **processes, "members": tuple(ProcessId(*one) for one in read["members"])})


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
