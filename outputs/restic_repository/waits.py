"""Waits while another program has locked the repository, and ends what takes too long."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Callable, TypeVar

from .messages import ResticError

STOP_POLL = 0.2  # seconds between two checks for a stop

Result = TypeVar("Result")


def when_free(call: Callable[[], Result], pauses: Sequence[float], check_stop: Callable[[], None]) -> Result:
    """Return what the call returns; repeat it after each pause while the repository is locked.

    Raises what the call raises.
    """
    for pause in pauses:
        try:
            return call()
        except ResticError as error:
            if not error.locked:
                raise
            wait(pause, check_stop)
    return call()


def wait(seconds: float, check_stop: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        check_stop()
        time.sleep(min(STOP_POLL, seconds))


def limited(seconds: float, what: str, check_stop: Callable[[], None] = lambda: None) -> Callable[[], None]:
    """Return a `check_stop` that also raises ResticError once so many seconds have passed."""
    deadline = time.monotonic() + seconds

    def check() -> None:
        check_stop()
        if time.monotonic() > deadline:
            hint = "is the repository's host reachable? see OUTPUT_STALL_TIMEOUT"
            raise ResticError(f"{what} took more than {seconds:.0f} s", hint, transient=True)

    return check
