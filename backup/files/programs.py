"""Runs the programs that read partitions and file systems; they get no input, and no secrets."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import IO, Callable, Union

from ..errors import BackupError, reason
from ..system.started_program import (
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

INHERITED = ("PATH",)
STOP_POLL = 0.1  # seconds between two checks for a stop
PACKAGES = {
    "debugfs": "e2fsprogs",
    "partx": "util-linux",
    "blkid": "util-linux",
    "guestfish": "guestfish",
}
# Bytes of memory that each of LIMITED may have: a guest's superblock can demand any number. A sound ext4 of
# 4 TiB with blocks of 1 KiB, which has the most groups, takes 32 MiB.
MEMORY = 512 << 20
LIMITED = ("debugfs", "partx", "blkid")
ADMIN_PATHS = ("/usr/sbin", "/sbin")  # not in every PATH


def output_of(arguments: Sequence[str], check_stop: Callable[[], None]) -> tuple[int, str]:
    """Run a program to its end; return its exit code and its output. Raises BackupError."""
    with outlet("stdout") as stdout, outlet("stderr") as stderr:
        program = started(arguments, NOTHING, stdout, stderr)
        try:
            while not ended_within(program, STOP_POLL):
                check_stop()
        finally:
            program.kill()
            program.wait()
        check_stop()  # it may have ended because its disk cannot be read any more
        return program.returncode, printed(stdout).decode(errors="replace")


def started(
    arguments: Sequence[str],
    stdin: int,
    stdout: Union[int, IO[bytes]],
    stderr: IO[bytes],
    variables: Mapping[str, str] = MappingProxyType({}),
) -> StartedProgram:
    """Start a program, which ends with the thread that has started it. Raises BackupError."""
    environment = {**inherited(INHERITED), "LANG": "C.UTF-8", **variables}
    environment["PATH"] = ":".join([environment.get("PATH", os.defpath), *ADMIN_PATHS])
    memory = MEMORY if arguments[0] in LIMITED else 0
    # in a group of its own: a terminal's Ctrl-C must reach only us, we end it then
    setup = Setup(signal.SIGKILL, group=0, memory=memory)
    try:
        return start_program(Command(arguments, environment), stdin, stdout, stderr, setup)
    except FileNotFoundError as error:
        name = arguments[0]
        raise BackupError(f"{name} is not installed", f"apt-get install {PACKAGES[name]}") from error
    except OSError as error:
        raise BackupError(f"cannot start {arguments[0]}: {reason(error)}", "check its permissions") from error
