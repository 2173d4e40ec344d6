"""The guard: a thread of the main process that enforces FREEZE_TIMEOUT for all workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..protocols import Reporter
from ..quiesce.thaw_rounds import Thaws
from ..settings import Settings
from ..system.time_limit import thread_errors
from .background_reporter import bugs_reported
from .watchdog import CHECKS, Watchdog

POLL = 1 / CHECKS  # seconds between two checks


class Guard:
    """Thaws guests by their notes, in a thread, and keeps the watchdog running."""

    def __init__(self, settings: Settings, reporter: Reporter, watchdog: Watchdog) -> None:
        self._thaws = Thaws(settings, reporter)
        self._reporter = reporter
        self._watchdog = watchdog
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)

    def start(self) -> None:
        with thread_errors():
            self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def overdue(self, uuid: str) -> bool:
        """Return whether a worker was killed because it did not thaw or resume this domain in time."""
        return uuid in self._thaws.killed

    def _watch(self) -> None:
        while not self._ended.wait(POLL):
            with bugs_reported(self._reporter):
                self._thaws.enforce()
            with bugs_reported(self._reporter):
                self._watchdog.check()


@contextmanager
def guarded(settings: Settings, reporter: Reporter, watchdog: Watchdog) -> Iterator[Guard]:
    """Run a guard during the block."""
    guard = Guard(settings, reporter, watchdog)
    guard.start()
    try:
        yield guard
    finally:
        guard.close()
