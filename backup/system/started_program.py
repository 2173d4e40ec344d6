"""Starts every other program: with its own environment, and with its command logged without secrets."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Callable, Optional, Union

from . import launcher
from .process import signals_blocked

StartedProgram = subprocess.Popen[bytes]

NOTHING, PIPE = subprocess.DEVNULL, subprocess.PIPE  # as standard input, or for output
DIRECTORY = "/"  # in which every program starts
# It reads nothing of the environment, which is the program's, and no file: an upgrade may be replacing them.
LAUNCHER = (sys.executable, "-I", "-S", "-B", "-c", Path(launcher.__file__).read_text())
# fork blocks nobody else. vfork would, with the lock of all threads in Python before 3.11.6: until exec, and
# before it the child closes our files, which can wait for a file system.
subprocess._USE_VFORK = False  # type: ignore[attr-defined]

HIDDEN = "***"
# In a URL: a password, a token in its place, the values of a query.
URL_SECRETS = (
    (re.compile(r"://([^:/@\s]*):[^\s\"']*@"), rf"://\1:{HIDDEN}@"),  # up to the last @, which it may hold
    (re.compile(r"(https?)://[^:/?#\s]+@"), rf"\1://{HIDDEN}@"),
    (re.compile(r"(://[^?\s\"']*\?)[^\s\"']+"), rf"\1{HIDDEN}"),
)

_logs: list[Callable[[str], None]] = []  # the last one is used


@dataclass(frozen=True)
class Command:
    """A program with its arguments, and all of its environment.

    The values of `secret_variables`, and `secret_arguments`, are never logged.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    secret_variables: Collection[str] = ()
    secret_arguments: Collection[str] = field(default=(), repr=False)

    @property
    def shell_line(self) -> str:
        """The command to be pasted into a shell, with the variables that it does not inherit from us.

        Each secret is replaced by HIDDEN.
        """
        own = {name: value for name, value in self.environment.items() if os.environ.get(name) != value}
        variables = [
            f"{name}={HIDDEN if name in self.secret_variables else value}" for name, value in own.items()
        ]
        arguments = [HIDDEN if one in self.secret_arguments else one for one in self.arguments]
        return shlex.join(map(without_secrets, ("env", f"--chdir={DIRECTORY}", *variables, *arguments)))


@dataclass(frozen=True)
class Setup:
    """How a program runs.

    `parent_death`: the signal that it gets when the thread that has started it ends. `group`: its process
    group, 0 for a new one, None for ours. `low_priority`: others come first. `memory`: the limit of its
    address space in bytes, 0 for none. `parent_mounts`: it sees the mounts that our first thread sees. It
    starts even if the group or the mounts that it would join are gone.
    """

    parent_death: int = 0
    group: Optional[int] = None
    low_priority: bool = False
    memory: int = 0
    parent_mounts: bool = False

    def command(self, errors: int, arguments: Sequence[str]) -> Sequence[str]:
        """Return the launcher's command, for a program that this process starts."""
        group = launcher.OUR_GROUP if self.group is None else self.group
        limits = (self.low_priority, self.memory, self.parent_mounts)
        numbers = (errors, os.getpid(), self.parent_death, group, *limits)
        return [*LAUNCHER, *(str(int(number)) for number in numbers), *arguments]


def start_program(
    command: Command,
    stdin: Union[int, IO[bytes]],
    stdout: Union[int, IO[bytes]],
    stderr: Union[int, IO[bytes]],
    setup: Setup,
    open_files: Collection[int] = (),
) -> StartedProgram:
    """Log the command and start it. Raises OSError. Of our open files the program has `open_files` only.

    What `setup` asks for is done by the launcher, from which the program takes over before this returns. No
    code of Python's may run between fork and exec: while a thread of librbd calls back into Python 3.11, it
    has a lock that the child then waits for without end.
    """
    for log in _logs[-1:]:
        log(f"starting {command.shell_line}")
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as answer:
        with os.fdopen(writing, "wb") as errors, signals_blocked(launcher.BLOCKED):  # it unblocks them
            program = subprocess.Popen(
                setup.command(errors.fileno(), command.arguments),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                bufsize=0,
                cwd=DIRECTORY,
                env=command.environment,
                pass_fds=(errors.fileno(), *open_files),
            )
        ready, number = answer.read(1), answer.read()  # ends when the program has taken over
    if number or not ready:
        with program:  # waits for its end, and closes its pipes
            pass
    if number:
        raise OSError(int(number), os.strerror(int(number)), command.arguments[0])
    if not ready:
        raise OSError(f"the process ended with {program.returncode} before it began")
    return program


@contextmanager
def commands_logged(log: Callable[[str], None]) -> Iterator[None]:
    """Pass the command of each program that any thread starts during the block to `log`."""
    _logs.append(log)
    try:
        yield
    finally:
        _logs.remove(log)


def ended_within(program: StartedProgram, seconds: float) -> bool:
    """Wait for the program's end, for so long at the most, and return whether it has ended."""
    try:
        program.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def inherited(names: Collection[str]) -> dict[str, str]:
    """Give these variables of our own environment, as far as they are set."""
    return {name: os.environ[name] for name in names if name in os.environ}


def without_secrets(text: str, secrets: Collection[str] = ()) -> str:
    """Replace these secrets in a text, and those that its URLs hold, by HIDDEN."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):  # one may hold another
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in URL_SECRETS:
        text = pattern.sub(replacement, text)
    return text


def outlet(name: str) -> IO[bytes]:
    """Create a file in memory for a program's output: unlike a pipe it never fills up."""
    return os.fdopen(os.memfd_create(name), "w+b", buffering=0)


def printed(into: IO[bytes], offset: int = 0) -> bytes:
    """Return the output in the file so far, from an offset on; a running program still writes at its end."""
    return os.pread(into.fileno(), max(os.fstat(into.fileno()).st_size - offset, 0), offset)
