"""A limit on how many workers of a node do the same thing at the same time."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

POLL = 0.1  # seconds between two attempts to get a slot
LIMIT = 180.0  # seconds to wait for a slot; then the processes that hold them count as hung
STOPPED_LIMIT = 5.0  # seconds to wait for a slot after a request to stop


def free_slots_of(pid: int, directory: str, name: str) -> None:
    """Have nobody wait for the slots of a process that was killed, but does not end.

    Without their files, whoever waits creates new ones.
    """
    with suppress(OSError):  # such as without /proc/locks: as long as it lives, its slots are occupied
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        occupied = {one[5].rpartition(":")[2] for one in locks if one[1] == "FLOCK" and one[4] == str(pid)}
        for path in Path(directory).glob(f"{name}.*.lock"):
            if str(path.stat().st_ino) in occupied:
                path.unlink()


@dataclass(frozen=True)
class Slots:
    """A directory with `count` lock files, one per slot. The slot of a killed process is free at once.

    The work matters more than the limit: after LIMIT it goes on without a slot. `warn` reports that once, and
    from then on nothing waits for a slot. `is_stopping` returns whether a stop was requested, or raises the
    reason if the work can be left undone.
    """

    directory: str
    name: str
    count: int
    warn: Callable[[str], None] = lambda _text: None
    is_stopping: Callable[[], bool] = lambda: False
    _given_up: threading.Event = field(default_factory=threading.Event, compare=False)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Occupy one of the slots during the block."""
        deadline, stopping = time.monotonic() + LIMIT, False
        with ExitStack() as stack:
            while not self._any_taken(stack):
                if not stopping and self.is_stopping():
                    stopping, deadline = True, min(deadline, time.monotonic() + STOPPED_LIMIT)
                if time.monotonic() > deadline or self._given_up.is_set():
                    self._give_up(stopping)
                    break
                time.sleep(POLL)
            yield

    @contextmanager
    def whenever_free(self, wait: Callable[[], None]) -> Iterator[None]:
        """Occupy one of the slots during the block, however long others hold them.

        For work of hours, whose holders somebody ends if they hang. `wait` pauses between two attempts, and
        raises the reason to stop.
        """
        with ExitStack() as stack:
            while not self._any_taken(stack):
                wait()
            yield

    def _give_up(self, stopping: bool) -> None:
        if not stopping and not self._given_up.is_set():
            self._given_up.set()
            text = (
                f"no slot for a {self.name} within {LIMIT:.0f} s: continuing without one (limit {self.count})"
            )
            self.warn(f"{text} (hint: another process on this node may hang)")

    def _any_taken(self, stack: ExitStack) -> bool:
        return any(self._taken(number, stack) for number in range(self.count))

    def _taken(self, number: int, stack: ExitStack) -> bool:
        """Try to lock this slot until the stack closes."""
        path = Path(self.directory, f"{self.name}.{number}.lock")
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:  # the directory is full, or gone: the work matters more than the limit
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        stack.callback(os.close, file)
        return True
