"""Repeats what failed with a transient error, at growing intervals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Callable, TypeVar

from ..errors import BackupError
from ..model import Level
from ..protocols import Reporter
from .time_limit import STOP_POLL, CheckStop

Result = TypeVar("Result")

FIRST_PAUSE = 10.0  # seconds between the first two retries; doubled from one to the next


def moments(retry_for: float) -> Iterator[float]:
    """Yield the time of each retry, in time.monotonic(); the next value must be taken when that has ended.

    The first is immediate, the others follow after growing pauses, and the last one begins when `retry_for`
    seconds have passed since the first attempts ended, or later if the one before takes longer.
    """
    over, pause = time.monotonic() + retry_for, FIRST_PAUSE
    begins = time.monotonic()
    while True:
        yield begins
        if begins >= over:
            return
        begins = max(time.monotonic(), min(time.monotonic() + pause, over))
        pause *= 2


def outlasted(
    call: Callable[[], Result], retry_for: float, reporter: Reporter, domain: str, check_stop: CheckStop
) -> Result:
    """Return what the call returns; repeat it for `retry_for` seconds while its error may be transient.

    Each error that is retried is reported. Raises the last error, and the reason to stop.
    """
    retries = moments(retry_for)
    while True:
        try:
            return call()
        except BackupError as error:
            check_stop()
            begins = next(retries, None) if error.transient else None
            if begins is None:
                raise
            seconds = max(0.0, begins - time.monotonic())
            reporter.message(Level.WARNING, domain, f"{error}; retried in {seconds:.0f} s (RETRY_FOR)")
        wait_until(begins, check_stop)


def wait_until(moment: float, check_stop: CheckStop) -> None:
    """Wait until `moment`, of time.monotonic(). Raises the reason to stop."""
    while (left := moment - time.monotonic()) > 0:
        check_stop()
        time.sleep(min(left, STOP_POLL))
