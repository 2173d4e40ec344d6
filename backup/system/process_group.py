"""Process groups: a program that was started as a group's leader, with all processes that it started."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

POLL = 0.05  # seconds between two checks whether all of a group have ended
UNKNOWN = 0  # start time of a process that is not in /proc
DYING = 1.0  # seconds to wait for the end of a killed process
ENDED = "ZX"  # states of a process that has ended, but which its parent has not waited for


class Life(NamedTuple):
    """Identifies a process within a boot: its pid and its start time in clock ticks (man 5 proc)."""

    pid: int
    began: int


@dataclass(frozen=True)
class _Status:
    life: Life
    state: str
    group: int
    session: int


def numbers_are_ours() -> bool:
    """Return whether /proc shows the pids of this process's own namespace: not so in some containers."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def pid_namespace() -> int:
    """Return the number of this process's PID namespace. Raises OSError."""
    return os.stat("/proc/self/ns/pid").st_ino


def life_of(pid: int) -> Life:
    """Return a process's identity, also if it is a zombie. Raises OSError."""
    return _status(pid).life


def lives(life: Life) -> bool:
    """Return whether this very process runs, or may run."""
    try:
        return _running(life.pid) == life or _hidden(life.pid)
    except OSError:  # no free file descriptor
        return True


def kill(life: Life) -> None:
    """Kill this very process if it runs, even if it is stopped, and wait for its end.

    In an uninterruptible sleep it may outlive the wait, but does nothing more.
    """
    try:
        descriptor = os.pidfd_open(life.pid)  # stays bound to this process, even if its pid is reused
    except ProcessLookupError:
        return
    try:
        if lives(life):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            ended = select.poll()  # unlike select, it takes descriptors of any number
            ended.register(descriptor, select.POLLIN)
            ended.poll(DYING * 1000)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def pid_in_use(pid: int) -> bool:
    """Return whether any running process has this pid."""
    return _running(pid) is not None or _hidden(pid)


def _running(pid: int) -> Optional[Life]:
    try:
        status = _status(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if status.state in ENDED else status.life


def _hidden(pid: int) -> bool:
    """Return whether a process exists that /proc hides from this one (ProtectProc= of a unit)."""
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
    """The group with the pid of `leader` as its id; all its processes are in one session."""

    leader: Life
    session: int

    @classmethod
    def led_by(cls, pid: int) -> Group:
        """Return the group of a child of this process that makes itself a leader."""
        try:
            leader = life_of(pid) if numbers_are_ours() else Life(pid, UNKNOWN)
        except OSError:  # no free file descriptor
            leader = Life(pid, UNKNOWN)
        return cls(leader, os.getsid(0))

    def members(self) -> Sequence[Life]:
        """Return the running processes of the group, the leader included."""
        try:
            os.killpg(self.leader.pid, 0)
        except ProcessLookupError:  # the usual case, without reading all of /proc
            return ()
        except PermissionError:
            pass
        if not numbers_are_ours():
            return (self.leader,)  # stands for any of the group
        every = [one for one in _everyone() if one.group == self.leader.pid and one.session == self.session]
        reused = any(one.life.pid == self.leader.pid and one.life != self.leader for one in every)
        if reused and self.leader.began != UNKNOWN:
            return ()  # another group has the id now
        return [one.life for one in every if one.life.began >= self.leader.began and one.state not in ENDED]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all running processes of the group."""
        if self.members():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.leader.pid, number)

    def ended(self, limit: float) -> bool:
        """Wait until all have ended, `limit` seconds at most, and return whether they have."""
        deadline = time.monotonic() + limit
        while self.members():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        return True


def _everyone() -> Iterator[_Status]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):  # it has just ended
                yield _status(int(name))


def _status(pid: int) -> _Status:
    """Read a process's status (man 5 proc_pid_stat). Its name may hold anything. Raises OSError."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return _Status(Life(pid, int(fields[19])), fields[0], int(fields[2]), int(fields[3]))
