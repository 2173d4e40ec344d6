"""Runs qemu-img."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import IO, Callable

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
from ..system.time_limit import STOP_POLL

INHERITED = ("PATH", "TMPDIR")  # what qemu-img gets of our own environment
SETUP = Setup(signal.SIGTERM, group=0)  # a terminal's Ctrl-C must reach only us: we end it then


def qemu_img(
    arguments: Sequence[str], check_stop: Callable[[], None], hint: str = "apt-get install qemu-utils"
) -> None:
    """Run it to its end. Raises BackupError, with this hint if it is not installed."""
    command = Command(("qemu-img", *arguments), {**inherited(INHERITED), "LANG": "C.UTF-8"})
    with outlet("stderr") as stderr:
        process = _started(command, stderr, hint)
        try:
            while not ended_within(process, STOP_POLL):
                check_stop()
        except BaseException:  # whatever it was, a stop included: the program does not outlive it
            process.kill()
            process.wait()
            raise
        output = printed(stderr).decode(errors="replace").strip()
    if process.returncode:
        raise BackupError(f"qemu-img failed with exit code {process.returncode}: {output}")


def not_installed(hint: str) -> BackupError:
    return BackupError("qemu-img is not installed", hint)


def _started(command: Command, stderr: IO[bytes], hint: str) -> StartedProgram:
    try:
        return start_program(command, NOTHING, NOTHING, stderr, SETUP)
    except FileNotFoundError as error:
        raise not_installed(hint) from error
    except OSError as error:
        raise BackupError(f"cannot start qemu-img: {reason(error)}", "check its permissions") from error
