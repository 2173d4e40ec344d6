"""A process of this node that may have ended, and whose number may be another's by now."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STATE, STARTED = 0, 19  # fields of /proc/PID/stat behind the name; the latter in clock ticks (man 5 proc)

DYING = 1.0  # seconds that a killed process may take to be gone


@dataclass(frozen=True)
class OtherProcess:
    """A process by its number and the moment at which it started, which no later one with the number has."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> OtherProcess:
        """Give the one that has the number now. Raises OSError if there is none."""
        return cls(pid, int(_fields(pid)[STARTED]))

    @classmethod
    def own(cls) -> OtherProcess:
        """Give the one that asks."""
        return cls.of(os.getpid())

    def lives(self) -> bool:
        """Tell whether it can still do anything, which a process that waits to be reaped can't."""
        try:
            fields = _fields(self.pid)
        except OSError:
            return False
        return int(fields[STARTED]) == self.started and fields[STATE] not in "ZX"

    def kill(self) -> None:
        """Kill it, if it lives, also where it is stopped, and wait for its end.

        In an uninterruptible sleep it may outlive that, but then does nothing more.
        """
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)  # it stays this process, whatever number the next one gets
            try:
                if self.lives():
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    select.select([descriptor], [], [], DYING)
            finally:
                os.close(descriptor)


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
