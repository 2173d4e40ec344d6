"""A terminal that a command runs on, as an admin sits before one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """What the command has written to it is in `written`; it is read only when somebody waits."""

    def __init__(self, ours: int, process: subprocess.Popen[bytes]) -> None:
        self._ours = ours
        self.process = process
        self.written = ""

    def wait_for(self, pattern: str, seconds: float = 180, after: int = 0) -> None:
        """Read until there is a match in the text that was written from a position on."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text(after)):
            assert time.monotonic() < deadline, f"not within {seconds} s: {pattern} in {self.written!r}"
            self._read()

    def text(self, after: int = 0) -> str:
        """Give what was written from a position on, without what moves the cursor and colours."""
        return CONTROL.sub("", self.written[after:])

    def read_to_end(self) -> int:
        """Read until the command has ended; give its exit code."""
        while self._read():
            pass
        return self.process.wait(300)

    def resize(self, columns: int, rows: int = 25) -> None:
        """Have another size, and tell the foreground process, as the kernel does."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def modes(self) -> list[object]:
        return list(termios.tcgetattr(self._ours))

    def _read(self) -> bool:
        """Take what there is; False at the end."""
        if not select.select([self._ours], [], [], 0.1)[0]:
            return True
        try:
            self.written += os.read(self._ours, 1 << 16).decode()
        except OSError:  # EIO: nobody has the other end any more
            return False
        return True


@contextmanager
def on_terminal(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Terminal]:
    """Start a command that has a terminal of 120 columns to itself; it has ended after the block."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 120, 0, 0))
    try:
        with subprocess.Popen(
            command,
            env={**environment, "TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            try:
                yield Terminal(ours, process)
            finally:
                process.kill()
    finally:
        os.close(ours)
