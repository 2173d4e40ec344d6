"""Talks to debugfs (e2fsprogs), which reads ext2, ext3 and ext4 without the kernel.

Files are named by their inode numbers alone, so that no name of a guest gets into a command.
"""

from __future__ import annotations

import os
import re
import secrets
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Callable

from ..errors import BackupError
from ..system.started_program import PIPE, StartedProgram
from .programs import outlet, printed, started

READ = 1 << 16  # bytes at a time
STOP_POLL = 0.2  # seconds between two checks for a stop
VERSION = re.compile(r"debugfs \d.*")  # it prints that among its errors
UNSOUND = "the guest's file system may be damaged; another restore point may be sound"


class DebugfsEnded(BackupError):
    """debugfs has ended by itself: a file system that it cannot open, or one that crashes it."""


class Debugfs:
    """A running debugfs. It executes commands one after the other."""

    def __init__(self, program: StartedProgram, errors: IO[bytes], check_stop: Callable[[], None]) -> None:
        assert program.stdin
        assert program.stdout
        self._commands = program.stdin
        self._output = program.stdout
        self._errors = errors
        self._read_errors = 0
        self._check_stop = check_stop
        self._readable = select.poll()
        self._readable.register(self._output, select.POLLIN)

    def ask(self, command: str) -> bytes:
        """Return a command's output. Raises BackupError if it has printed an error."""
        return b"".join(self.stream(command))

    def stream(self, command: str) -> Iterator[bytes]:
        """Yield a command's output. Raises BackupError if it has printed an error.

        A comment that no guest can guess shows where the output ends: debugfs prints each command before it
        executes it, and comments.
        """
        comment = f"# {secrets.token_hex(16)}\n"
        with suppress(BrokenPipeError):  # it has ended: its output does so too
            self._commands.write(f"{command}\n{comment}".encode())
        begin, end = f"debugfs: {command}\n".encode(), comment.encode()
        rest = b""
        while len(rest) < len(begin):
            rest += self._read()
        rest = rest[len(begin) :]
        while end not in rest:
            done = max(len(rest) - len(end), 0)
            yield rest[:done]
            rest = rest[done:] + self._read()
        yield rest[: -len(end)]
        self._require_no_error()

    def _read(self) -> bytes:
        while not self._readable.poll(STOP_POLL * 1000):
            self._check_stop()
        self._check_stop()
        data = os.read(self._output.fileno(), READ)
        if not data:
            raise DebugfsEnded(f"debugfs has ended{self._new_errors()}", UNSOUND)
        return data

    def _require_no_error(self) -> None:
        if error := self._new_errors():
            raise BackupError(f"debugfs failed{error}", UNSOUND)

    def _new_errors(self) -> str:
        new = printed(self._errors, self._read_errors)
        self._read_errors += len(new)
        lines = [line.strip() for line in new.decode(errors="replace").splitlines() if line.strip()]
        found = [line for line in lines if not VERSION.fullmatch(line)]
        return f": {'; '.join(found[:3])}" if found else ""


@contextmanager
def debugfs(path: str, offset: int, check_stop: Callable[[], None]) -> Iterator[Debugfs]:
    """Open the file system at this offset of a file during the block. Raises BackupError."""
    # -c: read-only, without the bitmaps, which only writing needs
    command = ("debugfs", "-c", "-f", "-", f"{path}?offset={offset}")
    with outlet("stderr") as errors:
        program = started(command, PIPE, PIPE, errors)
        try:
            running = Debugfs(program, errors, check_stop)
            running.ask("stat <2>")
            yield running
        finally:
            program.kill()
            program.wait()
            for pipe in (program.stdin, program.stdout):
                assert pipe
                pipe.close()
