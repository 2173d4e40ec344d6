"""A restic process, with all that it has started in its turn: the only place that starts and ends it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from typing import IO, Callable, Optional

from backup.errors import reason
from backup.system.process import lower_priority, signal_when_parent_dies
from backup.system.process_group import Group
from backup.system.started_program import Command, StartedProgram, ended_within, start_program

from .messages import ResticError

# What a command takes while it works, and may leave when it is killed: a lock, shared or exclusive.
LOCKS = {"backup": "shared", "forget": "exclusive"}
WAIT_POLL = 0.2  # seconds between two looks at whether the job has to stop
HEAD_START = 0.3  # seconds that the interrupt has to arrive before what restic reads comes to an end
INTERRUPT_LIMIT = 20  # seconds that restic may take to remove its lock after SIGINT
NO_LOCK_LIMIT = 2  # seconds that it may take where it has none


@dataclass
class Child:
    """A restic process and its group; what it printed is there when it has ended.

    `lock` is what it may leave if it is killed, "" for nothing; `began` a moment before its start, in seconds
    since 1970.
    """

    process: StartedProgram
    group: Group
    lock: str
    began: float
    stdout: str = ""
    stderr: str = ""

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin
        return self.process.stdin

    @property
    def runs(self) -> bool:
        """Whether it runs itself, whatever it has started."""
        return self.process.poll() is None

    def wait(self, seconds: float) -> None:
        """Wait for its end, for so long at the most."""
        ended_within(self.process, seconds)

    def ended(self, limit: float, check_stop: Callable[[], None]) -> bool:
        """Wait for its end, and return whether it came within `limit` seconds."""
        deadline = time.monotonic() + limit
        while self.runs:
            check_stop()
            if time.monotonic() > deadline:
                return False
            self.wait(min(WAIT_POLL, limit))
        return True

    def end(self, give_up: Optional[Callable[[], None]]) -> None:
        """Make sure that all of its group have ended, and that the end of what they read did not end them.

        End of stdin looks like success to restic, so it is interrupted first, and what it reads given up
        then. Not by SIGTERM, which leaves a lock with restic 0.14; and from 0.17 on it only looks at the
        signal when stdin ends.
        """
        if self.runs or self.group.members():
            self.group.send(signal.SIGINT)
            if give_up:
                self.group.ended(HEAD_START)
                give_up()
        if self.process.stdin:
            self.process.stdin.close()
        well = self.process.returncode == 0  # what a wrapper left behind then has no lock
        self._wait_or_kill(INTERRUPT_LIMIT if self.lock and not well else NO_LOCK_LIMIT)

    def _wait_or_kill(self, limit: float) -> None:
        deadline = time.monotonic() + limit
        self.wait(limit)
        if self.runs or not self.group.ended(max(deadline - time.monotonic(), 0)):
            self.group.send(signal.SIGKILL)
            self.process.wait()
            self.group.ended(NO_LOCK_LIMIT)


def started(
    command: Command,
    name: str,
    stdin: int,
    outlets: tuple[IO[bytes], IO[bytes]],
) -> Child:
    """Start the restic command of this name. Raises ResticError."""
    stdout, stderr = outlets
    began = time.time()
    try:
        process = start_program(command, stdin, stdout, stderr, partial(_in_child, name))
    except OSError as error:
        message = f"cannot start {command.arguments[0]}: {reason(error)}"
        raise ResticError(message, "see RESTIC_BINARY") from error
    return Child(process, Group.of(process.pid), LOCKS.get(name, ""), began)


def _in_child(name: str, parent: int) -> None:
    # A worker ignores SIGINT, and restic would inherit that: an interrupt in its first moments would
    # be lost, and the end of stdin after it commit what there is.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # When the worker is killed, stdin ends first, and a restic that has nothing left to read may save what
    # it has. No manifest counts that; and a worker has so many threads that the signal mostly wins.
    signal_when_parent_dies(signal.SIGINT, parent)
    os.setpgid(0, 0)  # a terminal's Ctrl-C is for us, and a wrapper ends with all that it has started
    if name == "backup":  # who restores is waited for
        lower_priority()


def outlet(name: str) -> IO[bytes]:
    """Give restic a file in memory to print into: unlike a pipe it never fills up."""
    return os.fdopen(os.memfd_create(name), "w+b", buffering=0)


def printed(into: IO[bytes]) -> str:
    """Give what was printed into a file by now."""
    into.seek(0)
    return into.read().decode(errors="replace")
