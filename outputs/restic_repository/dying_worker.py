"""What keeps a restic that reads our files from saving a part of them when this process is killed.

restic leaves out files that it cannot read, and saves the rest. A killed process cannot end it, and the
kernel's signal does not get past a wrapper.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO

from backup.errors import reason
from backup.system.started_program import (
    NOTHING,
    Command,
    StartedProgram,
    ended_within,
    inherited,
    start_program,
)

from .messages import ResticError

COPY_POLL = 50  # milliseconds
PIPE_CHUNK = 1 << 16  # bytes
# Waits for a line, or for the end of the process that would write it. It ignores what interrupts the group of
# which it is a member; SIGKILL ends all members before any of them notices that the files are gone.
KEEPER = """trap '' HUP INT TERM
read -r line && exit
kill -s INT -- "-$1"
sleep 1
kill -s KILL -- "-$1"
"""
KEEPER_LIMIT = 5  # seconds in which it ends after the line


@contextmanager
def reads_waiting(group: int, connections: Collection[int]) -> Iterator[None]:
    """Have restic's process group end if this process dies, before a read of its files fails.

    `connections` are the open FUSE connections. A process of its own holds them too: reads wait as long as it
    runs, and it ends the group first. Raises ResticError.
    """
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as line:
        with os.fdopen(reading, "rb", buffering=0) as waiting:
            keeper = _keeper(group, connections, waiting)
        try:
            yield
        finally:
            with suppress(BrokenPipeError):  # somebody killed it
                line.write(b"\n")
            if not ended_within(keeper, KEEPER_LIMIT):
                keeper.kill()
                keeper.wait()


def _keeper(group: int, connections: Collection[int], waiting: IO[bytes]) -> StartedProgram:
    command = Command(["sh", "-c", KEEPER, "sh", str(group)], inherited(["PATH"]))
    try:
        return start_program(command, waiting, NOTHING, NOTHING, partial(_join, group), connections)
    except OSError as error:
        raise ResticError(f"cannot start sh: {reason(error)}") from error


def _join(group: int, _: int) -> None:
    """Join the group: who ends all of it later ends the keeper too."""
    with suppress(OSError):  # restic has already ended
        os.setpgid(0, group)


@contextmanager
def breaking_outlet(into: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield a pipe whose bytes are copied into the file: a program that writes ends when this process dies.

    A dying process closes its files in the reverse order of their numbers: the pipe breaks before anything
    else fails that this process does for the program.
    """
    reading, writing = os.pipe()
    last = fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, 1 + max(map(int, os.listdir("/proc/self/fd"))))
    os.close(reading)
    ended = threading.Event()
    copying = threading.Thread(target=_copy, args=(last, into, ended), name="messages", daemon=True)
    try:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            copying.start()
            yield pipe
    finally:
        ended.set()
        copying.join()
        os.close(last)


def _copy(pipe: int, into: IO[bytes], ended: threading.Event) -> None:
    """Copy until the pipe's end, or until it is empty after `ended`: a wrapper may leave it open."""
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    position = 0
    while True:
        last = ended.is_set()
        if ready.poll(0 if last else COPY_POLL):
            chunk = os.read(pipe, PIPE_CHUNK)
            if not chunk:
                return
            position += os.pwrite(into.fileno(), chunk, position)
        elif last:
            return
