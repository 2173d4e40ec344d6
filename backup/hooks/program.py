"""A program of the admin, such as a hook: run with a time limit, and ended with all its children."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Callable

from ..errors import BackupError, reason
from ..system.started_program import Command, Setup, StartedProgram, ended_within, inherited, start_program

# The variables of our environment that it gets; all others are left out.
INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR")

KILL_AFTER = 10  # seconds that it has after SIGTERM
POLL = 0.2  # seconds between two checks whether to stop
PIPE_SIZE = 1 << 16  # bytes that can be in the pipe when it has ended (man 7 pipe)
LONGEST_LINE = 1 << 12
LAST_LINES = 3  # of the output, in an error message


class ProgramFailed(BackupError):
    """A program of the admin failed, was ended, or must not be started."""


@dataclass(frozen=True)
class AdminProgram:
    """A command, its variables beside the inherited ones, and its time `limit` in seconds."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    limit: int

    def run(self, on_line: Callable[[str], None], check_stop: Callable[[], None], stdin: bytes = b"") -> None:
        """Run it to its end, with `stdin` on its standard input; `on_line` gets each line of its output.

        Raises ProgramFailed; what `check_stop` raises, after the program has been ended. Background processes
        of a program that succeeded go on.
        """
        started = time.monotonic()
        last: deque[str] = deque(maxlen=LAST_LINES)
        out, into = os.pipe()
        with os.fdopen(out, "rb", buffering=0), os.fdopen(into, "wb") as stdout:
            process = self._started(stdout.fileno(), stdin)
            try:
                stdout.close()
                for line in _lines(out, process, check_stop):
                    last.append(line)
                    on_line(line)
            except BaseException:  # whatever it was, the program does not outlive it
                process.terminate()
                process.wait()
                _end_rest(process.pid)
                raise
        if process.returncode == 0:
            return
        if time.monotonic() - started >= self.limit:
            _end_rest(process.pid)
            raise ProgramFailed(f"{self.name} took more than {self.limit} s and was ended")
        code = process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        message = f"{self.name} {how}"
        raise ProgramFailed(f"{message}: {'; '.join(last)}" if last else message)

    def _started(self, stdout: int, given: bytes) -> StartedProgram:
        # coreutils' timeout makes a process group and ends all of it in time; and also when it gets SIGTERM
        # itself, from us, or from the kernel when we are killed
        arguments = ["timeout", f"--kill-after={KILL_AFTER}", str(self.limit), *self.command]
        environment = {**inherited(INHERITED), "LANG": "C.UTF-8", **self.environment}
        clean = {name: value.replace("\0", "") for name, value in environment.items()}
        try:
            with os.fdopen(os.memfd_create("given"), "w+b", buffering=0) as stdin:
                stdin.write(given)
                stdin.seek(0)
                command = Command(arguments, clean, secret_arguments=self.command[1:])  # such as a token
                return start_program(command, stdin, stdout, stdout, Setup(parent_death=signal.SIGTERM))
        except OSError as error:
            raise ProgramFailed(f"cannot start {self.name}: {reason(error)}") from error


def _lines(out: int, process: StartedProgram, check_stop: Callable[[], None]) -> Iterator[str]:
    """Yield its output until it has ended. Its background processes may keep the pipe open for longer."""
    ended, is_open, rest = False, True, b""
    while not ended:
        check_stop()
        ended = process.poll() is not None
        if not is_open:
            ended_within(process, POLL)
        elif wait([out], 0 if ended else POLL):
            printed = os.read(out, PIPE_SIZE)
            is_open = bool(printed)
            *lines, rest = (rest + printed).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            yield from filter(None, map(_text, lines))
    if rest:
        yield _text(rest)


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip()


def _end_rest(group: int) -> None:
    """Wait for the rest of the process group after SIGTERM, and kill it if it does not end."""
    deadline = time.monotonic() + KILL_AFTER
    with suppress(ProcessLookupError):  # none is left
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(POLL)
        os.killpg(group, signal.SIGKILL)
