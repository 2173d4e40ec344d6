"""When what failed with a transient error is tried again."""

from __future__ import annotations

import time
from collections.abc import Iterator

FIRST_PAUSE = 10.0  # seconds between the first two retries; doubled from one to the next


def moments(retry_for: float) -> Iterator[float]:
    """Yield when each retry begins, in time.monotonic(); ask for the next one when it has ended.

    At once, then after growing pauses, and for the last time when `retry_for` seconds are over since the
    first attempts ended: however long an attempt takes, one begins after that, and none after it.
    """
    over, pause = time.monotonic() + retry_for, FIRST_PAUSE
    begins = time.monotonic()
    while True:
        yield begins
        if begins >= over:
            return
        begins = max(time.monotonic(), min(time.monotonic() + pause, over))
        pause *= 2
