"""Words to standard output and error, which may be a terminal that was stopped (Ctrl-S), or gone."""

from __future__ import annotations

import math
import os
import sys
from functools import partial
from typing import Callable

from ..system.time_limit import within

TERMINAL_LIMIT = 60.0  # seconds for a terminal that may be stopped to take words
STUCK_LIMIT = 1.0  # the same for one that has taken none before


def print_text(text: str, seconds: float = math.inf) -> None:
    """Print what the exit code does not depend on: a reader that has gone is no failure.

    Nor is a terminal that stays stopped for so many seconds; whoever reads a pipe has time.
    """
    try:
        if seconds < math.inf and sys.stdout.isatty():
            written_within(seconds, partial(_write, text))
        else:
            _write(text)
    except OSError:  # what is still buffered would fail once more at exit, and change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def written_within(seconds: float, write: Callable[[], None]) -> None:
    """Write, and raise TimeoutError if that takes too long; where no thread can be had, take any time."""
    try:
        within(seconds, write)
    except RuntimeError:
        write()


def is_flushed() -> bool:
    """Flush what is buffered; return False where a thread still waits to write.

    Python's own way to the end of the process waits for that thread, and aborts.
    """
    try:
        written_within(STUCK_LIMIT, _flush)
    except TimeoutError:
        return False
    except OSError:
        pass  # which Python will meet itself
    return True


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _flush() -> None:
    sys.stderr.flush()
    sys.stdout.flush()
