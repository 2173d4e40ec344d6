"""Starts qemu-nbd, which opens a qcow2 file with all that it builds on, and serves it to us alone."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Callable

from backup.errors import BackupError, TransientError, reason
from backup.restore.qemu_img import INHERITED
from backup.system.private_directory import make_private
from backup.system.started_program import (
    NOTHING,
    Command,
    Setup,
    StartedProgram,
    ended_within,
    inherited,
    outlet,
    printed,
    start_program,
)
from backup.system.time_limit import STOP_POLL

from .nbd_connection import ConnectionLost

PROGRAM = "qemu-nbd"
INSTALL_HINT = "apt-get install qemu-utils"
OPTIONS = ("--format=qcow2", "--cache=writeback", "--aio=threads", "--discard=unmap", "--detect-zeroes=off")
# Or it would get new pages from the kernel for each request of 4 MiB: half its time (man mallopt).
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
DIRECTORY = "nbd-"  # in RUNTIME_DIR, while a server starts: then its socket needs no name any more
START_LIMIT = 60.0  # seconds until the server listens
POLL = 0.02


@contextmanager
def served(
    path: Path, runtime_dir: str, clients: int, writes: bool, limit: float, alive: Callable[[], None]
) -> Iterator[Sequence[socket.socket]]:
    """Serve a file during the block, to so many connections; gives those.

    `writes`: after the block the server has written all, if the connection has been ended. It may take
    `limit` seconds to end. `alive` may raise the reason to stop. Raises BackupError.
    """
    access = () if writes else ("--read-only", "--persistent")
    with ExitStack() as stack:
        directory = stack.enter_context(_socket_directory(runtime_dir))
        address = str(directory / "socket")
        arguments = (PROGRAM, f"--socket={address}", f"--shared={clients}", *OPTIONS, *access, str(path))
        stderr = stack.enter_context(outlet("stderr"))
        environment = {**inherited(INHERITED), **MEMORY, "LANG": "C.UTF-8"}
        process = _started(Command(arguments, environment), stderr, writes)
        stack.callback(_kill, process)
        try:
            connections = [stack.enter_context(_connected(address, process, alive)) for _ in range(clients)]
            shutil.rmtree(directory, ignore_errors=True)
            yield connections
            if writes:
                _require_success(process, limit, alive)
        except ConnectionLost as error:
            ended_within(process, STOP_POLL)
            raise _failure(path, f"{error.message} ({_text(stderr)})", writes) from error
        if process.returncode:
            raise _failure(path, _text(stderr), writes)


def _failure(path: Path, text: str, writes: bool) -> BackupError:
    """Return the error of a server that failed: what it reads is damaged, what it writes can be retried."""
    kind = TransientError if writes else BackupError
    return kind(f"qemu-nbd failed on {path}: {text}", f"qemu-img check {path}")


def _text(stderr: IO[bytes]) -> str:
    return printed(stderr).decode(errors="replace").strip()


def _started(command: Command, stderr: IO[bytes], writes: bool) -> StartedProgram:
    # In a group of its own: a terminal's Ctrl-C must reach only us, we end it then. A restore is urgent.
    setup = Setup(signal.SIGTERM, group=0, low_priority=writes)
    try:
        return start_program(command, NOTHING, NOTHING, stderr, setup)
    except FileNotFoundError as error:
        raise BackupError(f"{PROGRAM} is not installed", INSTALL_HINT) from error
    except OSError as error:
        raise BackupError(f"cannot start {PROGRAM}: {reason(error)}", "check its permissions") from error


def _kill(process: StartedProgram) -> None:
    process.kill()  # what it has not written by now is not needed
    process.wait()


def _connected(address: str, process: StartedProgram, alive: Callable[[], None]) -> socket.socket:
    """Connect as soon as the server listens. Raises BackupError."""
    deadline = time.monotonic() + START_LIMIT
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(address)
            return connection
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            if process.poll() is not None:
                raise ConnectionLost("it ended at once") from error
            if time.monotonic() > deadline:
                message = f"{PROGRAM} does not listen after {START_LIMIT:.0f} s"
                raise TransientError(message, "does DIRECTORY_OUTPUT answer?") from error
        except OSError as error:
            connection.close()
            hint = "RUNTIME_DIR has to be shorter than 80 bytes"
            raise BackupError(f"cannot connect to {address}: {error}", hint) from error
        alive()
        time.sleep(POLL)


def _require_success(process: StartedProgram, limit: float, alive: Callable[[], None]) -> None:
    """Wait for its end: then the file is closed. Raises TransientError."""
    deadline = time.monotonic() + limit
    while not ended_within(process, STOP_POLL):
        alive()
        if time.monotonic() > deadline:
            message = f"{PROGRAM} does not end within {limit:.0f} s"
            raise TransientError(message, "does DIRECTORY_OUTPUT answer?")


@contextmanager
def _socket_directory(runtime_dir: str) -> Iterator[Path]:
    """Have a directory for our user alone during the block, and remove those that killed processes left."""
    try:
        make_private(Path(runtime_dir))
        for left in Path(runtime_dir).glob(f"{DIRECTORY}*"):
            with suppress(OSError):  # its process runs, or another one is removing it
                descriptor = _locked(left)
                shutil.rmtree(left, ignore_errors=True)
                os.close(descriptor)
        directory, descriptor = _new_directory(runtime_dir)
    except OSError as error:
        message = f"cannot use RUNTIME_DIR {runtime_dir}: {reason(error)}"
        raise BackupError(message, "qemu-nbd needs a directory for its socket") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def _new_directory(runtime_dir: str) -> tuple[Path, int]:
    """Create one and lock it, until the descriptor is closed. Raises OSError."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=DIRECTORY, dir=runtime_dir))
        with suppress(FileNotFoundError, BlockingIOError):  # taken for one that was left
            return directory, _locked(directory)


def _locked(directory: Path) -> int:
    """Lock a directory. Raises OSError: BlockingIOError if it is locked."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(directory)  # it may have been removed just before
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
