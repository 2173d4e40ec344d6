"""A program that executes commands from its standard input, one after the other, until it is closed."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import IO, Callable, TypeVar

from ..errors import BackupError
from ..system.started_program import PIPE, StartedProgram, ended_within, outlet, printed
from ..text import size_text
from .programs import started

READ = 1 << 16  # bytes at a time
STOP_POLL = 0.2  # seconds between two checks for a stop
END_POLL = 0.02  # seconds between two checks for its end
END_LIMIT = 5.0  # seconds that a program may take to end when its input ends
ANSWER_LIMIT = 1 << 24  # bytes of an answer that is kept in memory
SKIP_LIMIT = 1 << 30  # bytes of an answer that is read for nothing
ERRORS_LIMIT = 1 << 22  # bytes of the errors of one command
UNSOUND = "the guest's file system may be damaged; another restore point may be sound"


class SessionEnded(BackupError):
    """The program has ended by itself: a file system that it cannot open, or one that crashes it."""


class CommandFailed(BackupError):
    """The program has printed an error, and goes on."""


class Session:
    """The running program. `name` is for messages."""

    def __init__(
        self, name: str, program: StartedProgram, errors: IO[bytes], check_stop: Callable[[], None]
    ) -> None:
        assert program.stdin
        assert program.stdout
        self.pid = program.pid
        self._name = name
        self._commands = program.stdin
        self._output = program.stdout
        self._errors = errors
        self._read_errors = 0
        self._check_stop = check_stop
        self.busy = False  # with commands of which not all was read
        self._readable = select.poll()
        self._readable.register(self._output, select.POLLIN)

    def between(self, commands: str, begin: str, end: str) -> Iterator[bytes]:
        """Give it commands, and yield what it prints between two texts. Raises BackupError if it fails.

        The last text must be one that no guest can guess.
        """
        self.busy = True
        with suppress(BrokenPipeError):  # it has ended: its output does so too
            self._commands.write(commands.encode(errors="surrogateescape"))
        rest, last = b"", end.encode()
        while len(rest) < len(begin):
            rest += self._read()
        rest = rest[len(begin) :]
        while last not in rest:
            done = max(len(rest) - len(last), 0)
            yield rest[:done]
            rest = rest[done:] + self._read()
        self.busy = False
        yield rest[: -len(last)]
        if error := self._new_errors():
            raise CommandFailed(f"{self._name} failed{error}", UNSOUND)

    def parts_before(self, parts: Iterator[bytes], errors: list[BackupError]) -> Iterator[bytes]:
        """Yield what it prints, also if it then fails: `errors` gets why. Raises SessionEnded."""
        try:
            yield from parts
        except CommandFailed as error:
            errors.append(error)

    def joined(self, parts: Iterator[bytes]) -> bytes:
        """Return all that it prints. Raises SessionEnded if a guest makes it too much for the memory."""
        found, size = [], 0
        for part in parts:
            size += len(part)
            if size > ANSWER_LIMIT:
                raise SessionEnded(f"{self._name} prints more than {size_text(ANSWER_LIMIT)}", UNSOUND)
            found.append(part)
        return b"".join(found)

    def skip(self, parts: Iterator[bytes]) -> None:
        """Read the rest of an answer, which the next one follows. Raises SessionEnded if it is endless."""
        size = 0
        for part in parts:
            size += len(part)
            if size > SKIP_LIMIT:
                raise SessionEnded(f"{self._name} prints more than {size_text(SKIP_LIMIT)}", UNSOUND)

    def interrupt(self) -> None:
        """Make it end, which it does not do when its input ends, or only after its commands."""

    def error_in(self, line: str) -> str:
        """Return what a line among its errors means, "" if it is none."""
        return line

    def _read(self) -> bytes:
        while not self._readable.poll(STOP_POLL * 1000):
            self._require_few_errors()
            self._check_stop()
        self._require_few_errors()
        self._check_stop()
        data = os.read(self._output.fileno(), READ)
        if not data:
            raise SessionEnded(f"{self._name} has ended{self._new_errors()}", UNSOUND)
        return data

    def _require_few_errors(self) -> None:
        if os.fstat(self._errors.fileno()).st_size - self._read_errors > ERRORS_LIMIT:
            raise SessionEnded(f"{self._name} prints more than {size_text(ERRORS_LIMIT)} of errors", UNSOUND)

    def _new_errors(self) -> str:
        new = printed(self._errors, self._read_errors)
        self._read_errors += len(new)
        self._errors.truncate(0)  # which frees the memory: what it prints next has the same place
        lines = [line.strip() for line in new.decode(errors="replace").splitlines() if line.strip()]
        found = list(filter(None, map(self.error_in, lines)))
        return f": {'; '.join(found[:3])}" if found else ""


Kind = TypeVar("Kind", bound=Session)


@contextmanager
def session(
    kind: type[Kind],
    command: Sequence[str],
    check_stop: Callable[[], None],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Kind]:
    """Run a program during the block. Raises BackupError."""
    with outlet("stderr") as errors:
        program = started(command, PIPE, PIPE, errors, environment)
        assert program.stdin
        assert program.stdout
        running = kind(command[0], program, errors, check_stop)
        try:
            yield running
        finally:
            program.stdin.close()
            if running.busy or not _ended(program, END_LIMIT):
                running.interrupt()
            if not _ended(program, END_LIMIT):
                os.killpg(program.pid, signal.SIGKILL)
                ended_within(program, END_LIMIT)  # while it waits for a read, it cannot end
            program.stdout.close()


def _ended(program: StartedProgram, limit: float) -> bool:
    """Wait for its end, for so many seconds; what it still prints is read, or it would wait for that."""
    assert program.stdout
    deadline = time.monotonic() + limit
    readable = select.poll()
    readable.register(program.stdout, select.POLLIN)
    while not ended_within(program, END_POLL):
        if time.monotonic() > deadline:
            return False
        if readable.poll(0):
            os.read(program.stdout.fileno(), READ)
    return True
