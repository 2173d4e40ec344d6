"""A program of the admin's, such as a hook: run for so long and no longer, and all of it is ended then."""

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
from ..system.process import signal_when_parent_dies
from ..system.started_program import Command, StartedProgram, ended_within, inherited, start_program

# What it gets of our own environment; everything else is left out.
INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR")

KILL_AFTER = 10  # seconds that it has after SIGTERM
POLL = 0.2  # seconds between two looks at whether to stop
PIPE_SIZE = 1 << 16  # bytes that can be in the pipe when it has ended (man 7 pipe)
LONGEST_LINE = 1 << 12
LAST_LINES = 3  # that an error tells


class ProgramFailed(BackupError):
    """A program of the admin's has failed, was ended, or was not to be started."""


@dataclass(frozen=True)
class AdminProgram:
    """What is started, with which variables beside the inherited ones; `limit` is in seconds."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    limit: int

    def run(self, tell: Callable[[str], None], check_stop: Callable[[], None], given: bytes = b"") -> None:
        """Run it to its end, with `given` on its standard input; `tell` hears each line that it prints.

        Raises ProgramFailed; what `check_stop` raises, and then it has been ended. What a program that ended
        well has left in the background goes on.
        """
        started = time.monotonic()
        last: deque[str] = deque(maxlen=LAST_LINES)
        out, into = os.pipe()
        with os.fdopen(out, "rb", buffering=0), os.fdopen(into, "wb") as stdout:
            process = self._started(stdout.fileno(), given)
            try:
                stdout.close()
                for line in _lines(out, process, check_stop):
                    last.append(line)
                    tell(line)
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
                return start_program(command, stdin, stdout, stdout, _in_child)
        except OSError as error:
            raise ProgramFailed(f"cannot start {self.name}: {reason(error)}") from error


def _in_child(parent: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # our handler would only note it
    signal_when_parent_dies(signal.SIGTERM, parent)


def _lines(out: int, process: StartedProgram, check_stop: Callable[[], None]) -> Iterator[str]:
    """Yield what it prints until it has ended. Whom it leaves behind may hold the pipe for longer."""
    ended, heard, rest = False, True, b""
    while not ended:
        check_stop()
        ended = process.poll() is not None
        if not heard:
            ended_within(process, POLL)
        elif wait([out], 0 if ended else POLL):
            printed = os.read(out, PIPE_SIZE)
            heard = bool(printed)
            *lines, rest = (rest + printed).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            yield from filter(None, map(_text, lines))
    if rest:
        yield _text(rest)


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip()


def _end_rest(group: int) -> None:
    """Wait for the rest of the group of a program that was ended, and kill it when SIGTERM was not enough."""
    deadline = time.monotonic() + KILL_AFTER
    with suppress(ProcessLookupError):  # nobody is left
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(POLL)
        os.killpg(group, signal.SIGKILL)
