"""When what failed with a transient error is tried again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Callable

from ..job.job_order import JobOrder
from ..job_result import JobResult
from ..model import Level
from ..protocols import Reporter
from ..system.stop_request import StopRequest

STOP_POLL = 0.2  # seconds between two looks at whether the run has to stop
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


@dataclass(frozen=True)
class Retry:
    """Retries failed jobs for `retry_for` seconds."""

    retry_for: float
    reporter: Reporter
    stop: StopRequest

    def transient_failures(
        self,
        orders: Sequence[JobOrder],
        results: Sequence[JobResult],
        do: Callable[[Sequence[JobOrder]], Sequence[JobResult]],
        discard: Callable[[], None],
    ) -> Sequence[JobResult]:
        """Do the jobs again whose error may be transient, until none is left; give the results of all jobs.

        `discard` removes what the failed attempts saved.
        """
        for number, begins in enumerate(moments(self.retry_for), 2):
            again = {result.uuid for result in results if result.transient}
            if not again or not self._waited(begins, len(again)):
                break
            discard()  # or both attempts would count
            text = f"trying {len(again)} failed domains once more: what failed may have passed"
            self.reporter.message(Level.INFO, "", text)
            done = do([replace(one, attempt=number) for one in orders if one.uuid in again])
            results = [*(result for result in results if result.uuid not in again), *done]
        return results

    def _waited(self, until: float, number: int) -> bool:
        """Wait for the time of a retry of so many domains; tell whether it is to be."""
        seconds = until - time.monotonic()
        if seconds > 0:
            text = f"{number} failed domains are tried again in {seconds:.0f} s (RETRY_FOR)"
            self.reporter.message(Level.INFO, "", text)
        while time.monotonic() < until and not self.stop.requested:
            time.sleep(STOP_POLL)
        return not self.stop.requested
