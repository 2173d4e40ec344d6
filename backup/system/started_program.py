"""Starts every other program: with its own environment, and with its command logged without secrets."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Callable, Union

StartedProgram = subprocess.Popen[bytes]

NOTHING, PIPE = subprocess.DEVNULL, subprocess.PIPE  # as standard input, or for output
DIRECTORY = "/"  # in which every program starts

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


def start_program(
    command: Command,
    stdin: Union[int, IO[bytes]],
    stdout: Union[int, IO[bytes]],
    stderr: Union[int, IO[bytes]],
    prepare: Callable[[int], None],
    open_files: Collection[int] = (),
) -> StartedProgram:
    """Log the command and start it. Raises OSError.

    `prepare` is called in the child before the program takes its place; it gets our process's pid. Of our
    open files the program has `open_files` only.
    """
    for log in _logs[-1:]:
        log(f"starting {command.shell_line}")
    return subprocess.Popen(
        command.arguments,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        bufsize=0,
        cwd=DIRECTORY,
        env=command.environment,
        preexec_fn=partial(prepare, os.getpid()),
        pass_fds=tuple(open_files),
    )


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
