"""When what failed with a transient error is tried again."""

from __future__ import annotations

from collections.abc import Iterator

FIRST_PAUSE = 10.0  # seconds between the first two retries; doubled from one to the next


def moments(retry_for: float) -> Iterator[float]:
    """Yield when retries begin, in seconds since the first attempts ended.

    At once, then after growing pauses, and for the last time after `retry_for`.
    """
    moment, pause = 0.0, FIRST_PAUSE
    yield moment
    while moment < retry_for:
        moment = min(moment + pause, retry_for)
        pause *= 2
        yield moment
