"""A limit on what all workers of a node do at the same time."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

POLL = 0.1  # seconds between two looks for a slot
LIMIT = 180.0  # seconds to wait for a slot; then whoever has it counts as hung
STOPPED_LIMIT = 5.0  # seconds to wait for a slot once there is to be a stop


@dataclass(frozen=True)
class Slots:
    """So many locked files in a directory. What a killed process held is free at once.

    What is done within a slot matters more than the limit: who has waited too long goes on without one.
    `warn` reports that once, and from then on nobody waits. `is_stopping` tells of a request to stop; or it
    raises the reason, where what is to be done can be left.
    """

    directory: str
    name: str
    count: int
    warn: Callable[[str], None] = lambda _text: None
    is_stopping: Callable[[], bool] = lambda: False
    _given_up: threading.Event = field(default_factory=threading.Event, compare=False)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold one of the slots during the block."""
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

    def _give_up(self, stopping: bool) -> None:
        if not stopping and not self._given_up.is_set():
            self._given_up.set()
            text = f"no slot for a {self.name} within {LIMIT:.0f} s: going on without one of the {self.count}"
            self.warn(f"{text} (hint: does another process of this node hang in it?)")

    def _any_taken(self, stack: ExitStack) -> bool:
        return any(self._taken(number, stack) for number in range(self.count))

    def _taken(self, number: int, stack: ExitStack) -> bool:
        """Try to get this one, for as long as the stack lasts."""
        path = Path(self.directory, f"{self.name}.{number}.lock")
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:  # the directory is full, or gone: what is to be done matters more than the limit
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        stack.callback(os.close, file)
        return True
