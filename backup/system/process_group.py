"""Process groups: a program started as a group's leader, together with the processes that it starts."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

POLL = 0.05  # seconds between two checks whether all of a group have ended
UNKNOWN = 0  # start time of a process that /proc does not show
DYING = 1.0  # seconds that a killed process may take to end
ENDED = "ZX"  # states of a process that has ended, but whose parent has not waited for it


class ProcessId(NamedTuple):
    """Identifies a process within a boot: its PID, and its start time in clock ticks (man 5 proc)."""

    pid: int
    began: int


@dataclass(frozen=True)
class _Status:
    id: ProcessId
    state: str
    parent: int
    group: int
    session: int


def sees_own_pids() -> bool:
    """Return whether /proc shows this process under its own PID, which is not so in some containers."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def pid_namespace() -> int:
    """Return the id of this process's PID namespace. Raises OSError."""
    return os.stat("/proc/self/ns/pid").st_ino


def process_id(pid: int) -> ProcessId:
    """Return the id of a process, which may have ended if its parent has not waited. Raises OSError."""
    return _status(pid).id


def is_running(process: ProcessId) -> bool:
    """Return whether this very process runs, or may run."""
    try:
        return _running(process.pid) == process or _hidden(process.pid)
    except OSError:  # out of files
        return True


def kill(process: ProcessId) -> None:
    """Kill this very process if it runs, even if it is stopped, and wait for its end.

    In an uninterruptible sleep it may survive for a while, but executes nothing more. Raises OSError if this
    is not permitted.
    """
    try:
        descriptor = os.pidfd_open(process.pid)  # refers to this process even if the PID is reused
    except ProcessLookupError:
        return
    except (OSError, AttributeError):
        # refused, such as by a container's filter of system calls; out of files; or a Python built without it
        _kill_by_pid(process)
        return
    try:
        if is_running(process):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            ended = select.poll()  # unlike select, it takes descriptors above 1023
            ended.register(descriptor, select.POLLIN)
            ended.poll(DYING * 1000)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):
        _kill_by_pid(process)
    finally:
        os.close(descriptor)


def _kill_by_pid(process: ProcessId) -> None:
    """Kill it without a descriptor: another process could only have its PID since the check just before."""
    deadline = time.monotonic() + DYING
    if is_running(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(POLL)


def pid_in_use(pid: int) -> bool:
    """Return whether a running process has this PID."""
    return _running(pid) is not None or _hidden(pid)


def _running(pid: int) -> Optional[ProcessId]:
    try:
        status = _status(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if status.state in ENDED else status.id


def _hidden(pid: int) -> bool:
    """Return whether there is a process that /proc hides from this one (ProtectProc= of a unit)."""
    if os.path.exists(f"/proc/{pid}"):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@dataclass(frozen=True)
class Group:
    """A process group: its id is the PID of `leader`; all members are in one session.

    What is in `namespace` belongs to it too: a mount namespace that a thread of this process has made for it,
    "" for none. A program may move what it starts to another group, but hardly out of there.
    """

    leader: ProcessId
    session: int
    namespace: str = ""

    @classmethod
    def led_by(cls, pid: int, namespace: str = "") -> Group:
        """Return the group of a child of this process that becomes a group leader."""
        try:
            leader = process_id(pid) if sees_own_pids() else ProcessId(pid, UNKNOWN)
        except OSError:  # out of files
            leader = ProcessId(pid, UNKNOWN)
        return cls(leader, os.getsid(0), namespace)

    def members(self) -> Sequence[ProcessId]:
        """Return all that still run, including the leader."""
        return [*self._in_group(), *self._in_namespace()]

    def _in_group(self) -> Sequence[ProcessId]:
        try:
            os.killpg(self.leader.pid, 0)
        except ProcessLookupError:  # the usual case, without reading all of /proc
            return ()
        except PermissionError:
            pass
        if not sees_own_pids():
            return (self.leader,)  # or another member
        every = [one for one in _everyone() if one.group == self.leader.pid and one.session == self.session]
        reused = any(one.id.pid == self.leader.pid and one.id != self.leader for one in every)
        if reused and self.leader.began != UNKNOWN:
            return ()  # another group has the id now
        return [one.id for one in every if one.id.began >= self.leader.began and one.state not in ENDED]

    def _in_namespace(self) -> Sequence[ProcessId]:
        """Return those in the namespace that are in other groups."""
        found = []
        for one in _everyone() if self.namespace else ():
            if one.group == self.leader.pid or one.state in ENDED or one.id.pid == os.getpid():
                continue
            with suppress(OSError):  # it has just ended, or is another user's
                if os.readlink(f"/proc/{one.id.pid}/ns/mnt") == self.namespace:
                    found.append(one.id)
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all members that still run."""
        if self._in_group():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.leader.pid, number)
        for one in self._in_namespace():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(one.pid, number)

    def interrupt(self, program: str) -> None:
        """Send SIGINT to all members but those that a program has started whose name begins so.

        restic needs its ssh, which is in its group, to remove its lock, and would lose it.
        """
        if not sees_own_pids():
            self.send(signal.SIGINT)
            return
        members = {one.pid for one in self.members()}
        parents = {one.id.pid: one.parent for one in _everyone()}
        for pid in members:
            ancestors = _ancestors(pid, parents, members)
            if not any(_executable(one).startswith(program) for one in ancestors):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGINT)

    def ended(self, limit: float) -> bool:
        """Wait for the end of all members, at most `limit` seconds; return whether they ended."""
        deadline = time.monotonic() + limit
        while self.members():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        return True


def _ancestors(pid: int, parents: Mapping[int, int], members: Collection[int]) -> Iterator[int]:
    while (parent := parents.get(pid, 0)) in members:
        yield parent
        pid = parent


def _executable(pid: int) -> str:
    """Return the name of the file that a process executes, of a script its shell's; "" if it is not known."""
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return ""


def own_mount_namespace() -> str:
    """Return the id of this thread's mount namespace, "" if the process itself is in it, or nobody knows."""
    try:
        namespace = os.readlink("/proc/thread-self/ns/mnt")
        return "" if namespace == os.readlink("/proc/self/ns/mnt") or not sees_own_pids() else namespace
    except OSError:
        return ""


def _everyone() -> Iterator[_Status]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):  # it has just ended
                yield _status(int(name))


def _status(pid: int) -> _Status:
    """Read a process's status (man 5 proc_pid_stat). Its name may contain anything. Raises OSError."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    parent, group, session = map(int, fields[1:4])
    return _Status(ProcessId(pid, int(fields[19])), fields[0], parent, group, session)
