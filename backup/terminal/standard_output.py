"""Writes to standard output and error, which may be a terminal that was stopped (Ctrl-S), or is gone."""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from functools import partial
from typing import Callable

from ..errors import BackupError, ConfigError, Interrupted
from ..system.time_limit import within
from .console import Console
from .progress.display import Display

TERMINAL_LIMIT = 60.0  # seconds for a terminal, which may be stopped, to take a text
STUCK_LIMIT = 1.0  # the same for a terminal that took nothing before


def open_closed_streams() -> None:
    """Have the standard streams that were closed when the program began lead nowhere.

    What the program opens must not get their descriptors, and be written to as if it were a terminal.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the lowest free descriptor each
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def print_text(text: str, seconds: float = math.inf) -> None:
    """Print a text. The exit code does not depend on it: a reader that is gone is not a failure.

    After `seconds` a stopped terminal is given up, which is no failure either. A pipe has no time limit.
    """
    try:
        if seconds < math.inf and sys.stdout.isatty():
            _write_within(seconds, partial(_write, text))
        else:
            _write(text)
    except OSError:  # what is still buffered would fail once more at exit, and change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_after_display(text: str, display: Display) -> None:
    """Print a text once the display is closed; hardly wait if the display found the terminal stuck."""
    print_text(text, STUCK_LIMIT if display.given_up else TERMINAL_LIMIT)


def print_stoppable(text: str, check_stop: Callable[[], None]) -> None:
    """Print a text, and raise what `check_stop` raises while the terminal does not take it."""
    within(math.inf, partial(print_text, text), check_stop)


def write_error(console: Console, error: BackupError) -> None:
    """Write an error, or all of a ConfigError. A terminal that stays stopped loses it."""
    limit = STUCK_LIMIT if isinstance(error, Interrupted) else TERMINAL_LIMIT
    for one in error.errors if isinstance(error, ConfigError) else [error]:
        with suppress(TimeoutError):
            _write_within(limit, partial(console.error, one))


def is_flushed() -> bool:
    """Flush what is buffered; return False if a thread still waits to write.

    Python's own way to end the process would wait for that thread, and abort.
    """
    try:
        _write_within(STUCK_LIMIT, _flush)
    except TimeoutError:
        return False
    except OSError:
        pass  # Python meets it itself at exit
    return True


def _write_within(seconds: float, write: Callable[[], None]) -> None:
    """Write. Raises TimeoutError if that takes too long; without a limit if no thread can be started."""
    try:
        within(seconds, write)
    except RuntimeError:
        write()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _flush() -> None:
    sys.stderr.flush()
    sys.stdout.flush()
