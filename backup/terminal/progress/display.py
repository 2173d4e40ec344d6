"""Passes the engine's reports on to the views that show them: plain lines, a live view, a unit's status.

A terminal that was stopped with Ctrl-S, or a pipe that nobody reads, blocks its writer. So one thread does
all the writing, and the engine only fills a queue.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Callable, Optional, Protocol

from ...job_result import Phase
from ...model import Level
from ..console import Console
from .activity import Activity, RunProgress

LIMIT = 60.0  # seconds at the end without a written event, after which the rest is given up
STOPPED_LIMIT = 3.0  # the same after a request to stop
POLL = 0.1


class View(Protocol):
    """Shows progress and messages. All calls come from one thread, and may block."""

    @property
    def interval(self) -> float:
        """Seconds between two calls of `show`, may be infinite."""

    def message(self, level: Level, domain: str, text: str) -> None: ...

    def phase(self, domain: str, phase: Phase) -> None:
        """Show that a job has entered another phase."""

    def show(self, run: RunProgress) -> None:
        """Show the progress of the run."""

    def close(self, run: RunProgress) -> None:
        """Show how the run ended, and leave the terminal as it was."""


Event = Callable[[View], None]


class Display:
    """Passes reports to the views during its block. Satisfies protocols.RunReporter, in any thread.

    After the block everything is written, unless a view blocked for too long and the rest is `given_up`: a
    terminal that was stopped, or a pipe that nobody reads, must not keep the process from ending.
    `is_stopping`: a stop was requested.
    """

    def __init__(
        self, console: Console, views: Sequence[View], is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.given_up = False
        self._console = console
        self._is_stopping = is_stopping
        self._written = 0  # events
        self._views = views
        self._activity = Activity(time.monotonic())
        self._lock = threading.Lock()  # of the activity; never taken while writing
        self._events: SimpleQueue[Optional[Event]] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="display", daemon=True)

    def __enter__(self) -> Display:
        self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._events.put(None)
        silent, before = 0, self._written
        while self._writer.is_alive() and not self.given_up:
            self._writer.join(POLL)
            # checks are counted, as the clock goes on while the whole process stands still
            silent = silent + 1 if self._written == before else 0
            before = self._written
            limit = STOPPED_LIMIT if self._is_stopping() else LIMIT
            self.given_up = self._writer.is_alive() and silent * POLL > limit

    def __reduce__(self) -> tuple[Callable[..., Console], tuple[object, ...]]:
        """In another process there are only plain lines."""
        return self._console.__reduce__()

    def message(self, level: Level, domain: str, text: str) -> None:
        self._events.put(lambda view: view.message(level, domain, text))

    def phase(self, domain: str, phase: Phase, limit: float = math.inf) -> None:
        with self._lock:
            changed = self._activity.phase(domain, phase)
        if changed:
            self._events.put(lambda view: view.phase(domain, phase))

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        with self._lock:
            self._activity.progress(domain, target, done, size, time.monotonic())

    def planned(self, uuid: str, domain: str, size: int) -> None:
        with self._lock:
            self._activity.planned(uuid, domain, size)

    def ended(self, uuid: str, failed: bool) -> None:
        with self._lock:
            self._activity.ended(uuid, failed)

    def _write(self) -> None:
        """Pass events on to the views, and let each show the progress at its interval."""
        due = [time.monotonic() + view.interval for view in self._views]
        while (event := self._next_event(min(due))) is not None:
            for number, view in enumerate(self._views):
                event(view)
                if time.monotonic() >= due[number]:
                    view.show(self._progress())
                    due[number] = time.monotonic() + view.interval
            self._written += 1
        for view in self._views:
            view.close(self._progress())

    def _next_event(self, until: float) -> Optional[Event]:
        """Wait for the next event until that moment; None marks the end."""
        try:
            return self._events.get(timeout=None if until == math.inf else max(0, until - time.monotonic()))
        except Empty:
            return _nothing

    def _progress(self) -> RunProgress:
        with self._lock:
            return self._activity.current(time.monotonic())


def _nothing(_view: View) -> None: ...
