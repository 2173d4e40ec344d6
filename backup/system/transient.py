"""Repeats what failed with a transient error, at growing intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Callable, TypeVar

from ..errors import BackupError
from ..model import Level
from ..protocols import Reporter
from .service import in_a_service
from .time_limit import STOP_POLL, CheckStop

Result = TypeVar("Result")

FIRST_PAUSE = 10.0  # seconds between the first two retries; doubled from one to the next
BY_HAND = 60.0  # seconds at the most to retry what an admin waits for, who may have typed something wrong


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


def at_most_by_hand(retry_for: float) -> float:
    """Return for how many seconds a command retries that an admin may have typed: less than a timer's."""
    return retry_for if in_a_service() else min(retry_for, BY_HAND)


def outlasted(
    call: Callable[[], Result], retry_for: float, reporter: Reporter, domain: str, check_stop: CheckStop
) -> Result:
    """Return what the call returns; repeat it for `retry_for` seconds while its error may be transient.

    At least once; then no more when that time is over, as each call may hang for long. Each error that is
    retried is reported. Raises the last error, and the reason to stop.
    """
    retries, over = moments(retry_for), math.inf
    while True:
        try:
            return call()
        except BackupError as error:
            check_stop()
            begins = next(retries, None) if error.transient else None
            now = time.monotonic()
            if begins is None or now >= over:
                raise
            over = min(over, now + retry_for)  # since the first error
            text = f"{error}; retried in {max(0.0, begins - now):.0f} s (RETRY_FOR)"
            if retry_for:
                text += f", {over - now:.0f} of {retry_for:.0f} s left"
            reporter.message(Level.WARNING, domain, text)
        wait_until(begins, check_stop)


def wait_until(moment: float, check_stop: CheckStop) -> None:
    """Wait until `moment`, of time.monotonic(). Raises the reason to stop."""
    while (left := moment - time.monotonic()) > 0:
        check_stop()
        time.sleep(min(left, STOP_POLL))
