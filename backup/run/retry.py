"""Retries of jobs that failed with a transient error."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Callable

from ..job.job_order import JobOrder
from ..job_result import NOT_BEGUN, JobResult
from ..model import Level
from ..protocols import Reporter
from ..system.stop_request import StopRequest
from ..system.transient import moments

STOP_POLL = 0.2  # seconds between two checks whether the run has to stop


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
        """Repeat the jobs whose error may be transient, until none is left; return the results of all jobs.

        `discard` removes what the failed attempts saved.
        """
        full_reads: set[str] = set()
        freezes: set[str] = set()
        for number, begins in enumerate(moments(self.retry_for), 2):
            again = {result.uuid for result in results if result.transient}
            if not again or not self._waited(begins, len(again)):
                break
            discard()  # or both attempts would count
            text = f"retrying {len(again)} failed domains: their errors may be transient"
            self.reporter.message(Level.INFO, "", text)
            full_reads |= {result.uuid for result in results if result.full_read}
            freezes |= {result.uuid for result in results if result.freeze_failed}
            repeated = [
                replace(
                    one,
                    attempt=number,
                    known=(),  # listed again: it may have changed
                    full_read=one.uuid in full_reads,
                    freeze_failed=one.uuid in freezes,
                )
                for one in orders
                if one.uuid in again
            ]
            # one that a stop kept from beginning keeps the result of its last attempt
            done = [result for result in do(repeated) if result.reason != NOT_BEGUN]
            new = {result.uuid for result in done}
            results = [*(result for result in results if result.uuid not in new), *done]
        return results

    def _waited(self, until: float, number: int) -> bool:
        """Wait for the time of a retry of so many domains; return False on a request to stop."""
        seconds = until - time.monotonic()
        if seconds > 0:
            text = f"{number} failed domains are retried in {seconds:.0f} s (RETRY_FOR)"
            self.reporter.message(Level.INFO, "", text)
        while time.monotonic() < until and not self.stop.requested:
            time.sleep(STOP_POLL)
        return not self.stop.requested
