"""Talks to debugfs (e2fsprogs), which reads ext2, ext3 and ext4 without the kernel.

Files are named by their inode numbers alone, so that no name of a guest gets into a command.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Callable

from ..errors import BackupError
from .session import Session, session

VERSION = re.compile(r"debugfs \d.*")  # it prints that among its errors


class Debugfs(Session):
    """A running debugfs."""

    def interrupt(self) -> None:
        """Kill it: it only reads, and would read a file to its end first."""
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(self.pid, signal.SIGKILL)

    def error_in(self, line: str) -> str:
        return "" if VERSION.fullmatch(line) else line

    def ask(self, command: str) -> bytes:
        """Return a command's output. Raises BackupError if it has printed an error."""
        return self.joined(self.stream(command))

    def stream_before(self, command: str, errors: list[BackupError]) -> Iterator[bytes]:
        """Yield a command's output; `errors` gets the one that it then prints. Raises SessionEnded."""
        return self.parts_before(self.stream(command), errors)

    def stream(self, command: str) -> Iterator[bytes]:
        """Yield a command's output. Raises BackupError if it has printed an error.

        debugfs prints each command before it executes it, and comments.
        """
        comment = f"# {secrets.token_hex(16)}\n"
        return self.between(f"{command}\n{comment}", f"debugfs: {command}\n", comment)


@contextmanager
def debugfs(path: str, offset: int, check_stop: Callable[[], None]) -> Iterator[Debugfs]:
    """Open the file system at this offset of a file during the block. Raises BackupError."""
    # -c: read-only, without the bitmaps, which only writing needs
    command = ("debugfs", "-c", "-f", "-", f"{path}?offset={offset}")
    with session(Debugfs, command, check_stop) as running:
        running.ask("stat <2>")
        yield running
