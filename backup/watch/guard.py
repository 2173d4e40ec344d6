"""The guard: FREEZE_TIMEOUT enforced by the main process, whatever its workers do or can't do any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..job.thaw import Thaws
from ..protocols import Reporter
from ..settings import Settings
from .background_reporter import reported
from .watchdog import Watchdog

POLL = 0.5  # seconds between two looks


class Guard:
    """Looks after the notes of quiesced guests, in a thread, and after the watchdog."""

    def __init__(self, settings: Settings, reporter: Reporter, watchdog: Watchdog) -> None:
        self._thaws = Thaws(settings, reporter)
        self._reporter = reporter
        self._watchdog = watchdog
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="guard", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def overdue(self, uuid: str) -> bool:
        """Tell whether a worker was killed because it had not thawed or resumed this domain in time."""
        return uuid in self._thaws.killed

    def _look(self) -> None:
        while not self._ended.wait(POLL):
            with reported(self._reporter):
                self._thaws.enforce()
            with reported(self._reporter):
                self._watchdog.revive()


@contextmanager
def guarded(settings: Settings, reporter: Reporter, watchdog: Watchdog) -> Iterator[Guard]:
    """Have a guard during the block."""
    guard = Guard(settings, reporter, watchdog)
    guard.start()
    try:
        yield guard
    finally:
        guard.close()
