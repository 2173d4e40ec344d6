"""A limit on what all workers of a node do at the same time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

POLL = 0.1  # seconds between two looks for a slot


@dataclass(frozen=True)
class Slots:
    """So many locked files in a directory. What a killed process held is free at once."""

    directory: str
    name: str
    count: int

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold one of the slots during the block."""
        with ExitStack() as stack:
            while not any(self._taken(number, stack) for number in range(self.count)):
                time.sleep(POLL)
            yield

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
