"""Reading from a pipe, with a timeout for a writer that makes no progress."""

from __future__ import annotations

import fcntl
import math
import os
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Callable

from ..errors import BackupError
from .pipe_writer import F_SETPIPE_SZ, PIPE_SIZE, Stalled

READ_POLL = 0.2  # seconds between two checks whether the job has to stop


class WriterEnded(BackupError):
    """The writer closed the pipe too early; its own output explains why."""


class PipeReader:
    """Reads what another program writes into a pipe. `received` counts the bytes."""

    def __init__(self, pipe: int, check_stop: Callable[[], None], timeout: float = math.inf) -> None:
        """`timeout`: seconds within which the writer has to deliver a byte."""
        self.received = 0
        self._pipe = pipe
        self._check_stop = check_stop
        self._timeout = timeout
        with suppress(PermissionError):  # this user's pipe memory is used up: a smaller pipe is only slower
            fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_SIZE)
        self._readable = select.poll()
        self._readable.register(pipe, select.POLLIN)

    def fill(self, buffer: memoryview) -> int:
        """Fill the buffer and return the number of bytes, fewer only at the end.

        Raises Stalled, and what `check_stop` raises.
        """
        filled = 0
        while filled < len(buffer):
            self._wait()
            count = os.readv(self._pipe, [buffer[filled:]])
            if not count:
                break
            filled += count
        self.received += filled
        return filled

    def read(self) -> bytes:
        """Return everything up to the end."""
        parts: list[bytes] = []
        while not parts or parts[-1]:
            self._wait()
            parts.append(os.read(self._pipe, PIPE_SIZE))
        self.received += sum(map(len, parts))
        return b"".join(parts)

    def _wait(self) -> None:
        deadline = time.monotonic() + self._timeout
        self._check_stop()
        while not self._ready():
            self._check_stop()
            if time.monotonic() > deadline:
                message = f"the output gave no byte for {self._timeout:.0f} s"
                raise Stalled(message, "is the repository's host reachable? see OUTPUT_STALL_TIMEOUT")

    def _ready(self) -> Sequence[tuple[int, int]]:
        return self._readable.poll(READ_POLL * 1000)
