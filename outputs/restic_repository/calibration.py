"""Adds a key with a small share of a processor, so that restic chooses one that costs little.

restic chooses the parameters of a new key so that half a second passes on the machine that adds it (restic's
internal/repository/key.go).
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable

from .child import Child
from .keys import FAST_USER
from .program import Program
from .waits import limited

TURN = 0.002  # seconds that restic runs at a time
ASK_POLL = 0.02  # seconds between two checks whether restic asks for the new password


def add_key(program: Program, password: str, share: float, check_stop: Callable[[], None]) -> None:
    """Run `restic key add`, with a share of a processor from the moment when it asks for the new password.

    It reads that from a named pipe: having opened that, it has also opened the repository, at full speed.
    Raises ResticError.
    """
    check = limited(program.call_limit, "restic key add", check_stop)
    names = ("--user", FAST_USER, "--host", socket.gethostname())
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "password")
        os.mkfifo(path, 0o600)
        arguments = ("key", "add", *names, "--new-password-file", str(path))
        with (
            program.running(*arguments, limit=program.call_limit, check_stop=check) as child,
            _running_at_the_end(child),
        ):
            while child.runs and not _fed(path, password, child):
                child.wait(ASK_POLL)
                check()
            _slow_down(child, share, check)


@contextmanager
def _running_at_the_end(child: Child) -> Iterator[None]:
    """Continue restic after the block, whatever happened: stopped, it neither ends nor removes its lock."""
    try:
        yield
    finally:
        child.group.send(signal.SIGCONT)


def _fed(path: Path, password: str, child: Child) -> bool:
    """Stop restic and write the password, if it has opened the pipe."""
    try:
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nobody reads yet
            return False
        raise
    with suppress(BrokenPipeError), os.fdopen(pipe, "w") as file:  # restic has ended: it prints why
        child.group.send(signal.SIGSTOP)
        file.write(password)
    return True


def _slow_down(child: Child, share: float, check: Callable[[], None]) -> None:
    """Let restic run for this share of the time until it has ended."""
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        _be_on_time()
        while child.runs:
            child.group.send(signal.SIGCONT)
            time.sleep(TURN)
            child.group.send(signal.SIGSTOP)
            child.wait(TURN / share)
            check()
    finally:
        os.sched_setscheduler(0, policy, parameter)


def _be_on_time() -> None:
    """Have this process run as soon as its sleep is over, on a busy node too, so that turns are short."""
    with suppress(PermissionError):  # in a container; what is added is measured in any case
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
