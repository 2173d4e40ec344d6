"""Starts and ends a restic process together with all processes that it started."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Callable, Optional

from backup.errors import reason
from backup.system.process_group import Group
from backup.system.started_program import Command, Setup, StartedProgram, ended_within, start_program

from .messages import ResticError, failed_to_tidy_up, is_locked

# The lock that a command holds, and may leave if it is killed. `key list` takes one despite --no-lock (0.14).
LOCKS = {
    "backup": "shared",
    "copy": "shared",
    "forget": "exclusive",
    "key add": "shared",
    "key list": "shared",
    "key remove": "exclusive",
    "mount": "shared",
}
WAIT_POLL = 0.2  # seconds between two checks for a stop
HEAD_START = 0.3  # seconds from the interrupt to the end of restic's input
INTERRUPT_LIMIT = 20  # seconds that restic may take to remove its lock after SIGINT
INTERRUPTED = 128 + signal.SIGINT  # restic's exit code after it has cleaned up
NO_LOCK_LIMIT = 2  # seconds that it may take without a lock
KILL_LIMIT = 15  # seconds that it may take to end after SIGKILL


@dataclass
class Child:
    """A restic process and its group; `stdout` and `stderr` are set when it has ended.

    `lock` is the kind of lock that it may leave if it is killed, "" for none; `began` a time just before its
    start, in seconds since 1970. `errors` is where its standard error goes. `serves`: it is a mount that is
    ready, and removes its lock when it is interrupted.
    """

    process: StartedProgram
    group: Group
    lock: str
    began: float
    errors: IO[bytes]
    serves: bool = False
    stdout: str = ""
    stderr: str = ""

    @property
    def left_nothing(self) -> bool:
        """Whether it has ended without leaving a lock."""
        code = self.process.returncode
        if code is None:  # it does not end
            return False
        unlocked = self.serves and code == INTERRUPTED and not failed_to_tidy_up(self.stderr)
        return code == 0 or is_locked(code, self.stderr) or unlocked

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin
        return self.process.stdin

    @property
    def runs(self) -> bool:
        """Whether the process itself runs, regardless of its children."""
        return self.process.poll() is None

    def wait(self, seconds: float) -> None:
        """Wait for its end, this many seconds at most."""
        ended_within(self.process, seconds)

    def ended(self, limit: float, check_stop: Callable[[], None]) -> bool:
        """Wait for its end, and return whether it ended within `limit` seconds."""
        deadline = time.monotonic() + limit
        while self.runs:
            check_stop()
            if time.monotonic() > deadline:
                return False
            self.wait(min(WAIT_POLL, limit))
        return True

    def end(self, give_up: Optional[Callable[[], None]]) -> None:
        """End the whole group, by a signal that arrives before the end of its input.

        To restic the end of stdin means success, so it is interrupted first; then `give_up` and closing stdin
        end its input. SIGTERM would leave a lock with restic 0.14. From 0.17 on restic handles the signal
        only when stdin ends.
        """
        if self.runs or self.group.members():
            self.group.interrupt("restic")
            self.group.ended(HEAD_START)  # one that was stopped might see the end of its input first
            if give_up:
                give_up()
        if self.process.stdin:
            self.process.stdin.close()
        succeeded = self.process.returncode == 0  # then processes that a wrapper left have no lock
        self._wait_or_kill(INTERRUPT_LIMIT if self.lock and not succeeded else NO_LOCK_LIMIT)

    def _wait_or_kill(self, limit: float) -> None:
        deadline = time.monotonic() + limit
        self.wait(limit)
        if self.runs or not self.group.ended(max(deadline - time.monotonic(), 0)):
            self.group.send(signal.SIGKILL)
            self.wait(KILL_LIMIT)  # in an uninterruptible sleep it does not end
            self.group.ended(NO_LOCK_LIMIT)


def started(
    command: Command,
    arguments: Sequence[str],
    stdin: int,
    outlets: tuple[IO[bytes], IO[bytes]],
    namespace: str = "",
) -> Child:
    """Start the restic command with these arguments of restic's own. Raises ResticError.

    `namespace`: this thread's mount namespace if it was made for this restic.
    """
    stdout, stderr = outlets
    began = time.time()
    try:
        process = start_program(command, stdin, stdout, stderr, _setup(arguments[0]))
    except OSError as error:
        message = f"cannot start {command.arguments[0]}: {reason(error)}"
        raise ResticError(message, "see RESTIC_BINARY") from error
    lock = LOCKS.get(" ".join(arguments[:2])) or LOCKS.get(arguments[0], "")
    return Child(process, Group.led_by(process.pid, namespace), lock, began, stderr)


def _setup(name: str) -> Setup:
    """Return how this command of restic's runs.

    When the worker is killed, stdin ends first, and a restic that has read everything may save it. No
    manifest names that snapshot; and a worker has so many threads that the signal usually arrives first.

    In a group of its own: a terminal's Ctrl-C must reach only us, and a wrapper is ended with its children.
    """
    return Setup(signal.SIGINT, group=0, low_priority=name == "backup")  # a restore is urgent
