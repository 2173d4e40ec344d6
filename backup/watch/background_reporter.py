"""Messages that delay no thaw: their reader may be stopped, while guests are frozen."""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Optional

from ..job_result import Phase
from ..model import Level
from ..protocols import Reporter

LAST_MESSAGES = 3.0  # seconds at the end for messages that are not written yet


class BackgroundReporter:
    """Passes messages on in a thread of its own. Satisfies protocols.Reporter."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._messages: SimpleQueue[Optional[tuple[Level, str, str]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._pass_on, name="messages", daemon=True)

    def __enter__(self) -> BackgroundReporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._messages.put(None)
        self._thread.join(LAST_MESSAGES)

    def message(self, level: Level, domain: str, text: str) -> None:
        self._messages.put((level, domain, text))

    def phase(self, domain: str, phase: Phase, limit: float = math.inf) -> None:
        """Phases are not shown."""

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        """Progress is not shown."""

    def _pass_on(self) -> None:
        while (message := self._messages.get()) is not None:
            self._reporter.message(*message)


@contextmanager
def bugs_reported(reporter: Reporter) -> Iterator[None]:
    """Report a bug, or a lack of memory, in the block and go on: the next step may thaw a guest."""
    try:
        yield
    except Exception:  # a bug must not end the watchdog or the guard
        with suppress(Exception):  # no memory for that either
            reporter.message(Level.ERROR, "", f"a bug: {traceback.format_exc()}")
