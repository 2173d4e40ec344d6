"""Reports that hold nobody up: who reads them may have stopped, and guests wait."""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Optional

from ..job_result import Phase
from ..model import Level
from ..protocols import Reporter

PARTING = 3.0  # seconds at the end for what has not been written yet


class Aside:
    """Passes messages on in a thread of its own. Satisfies protocols.Reporter."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._messages: SimpleQueue[Optional[tuple[Level, str, str]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._pass_on, name="messages", daemon=True)

    def __enter__(self) -> Aside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._messages.put(None)
        self._thread.join(PARTING)

    def message(self, level: Level, domain: str, text: str) -> None:
        self._messages.put((level, domain, text))

    def phase(self, domain: str, phase: Phase, limit: float = math.inf) -> None:
        """Nobody looks."""

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        """Nobody looks."""

    def _pass_on(self) -> None:
        while (message := self._messages.get()) is not None:
            self._reporter.message(*message)


@contextmanager
def reported(reporter: Reporter) -> Iterator[None]:
    """Report a bug in the block, or that there is no memory, and go on: what comes next matters more."""
    try:
        yield
    except Exception:  # whatever it is: guests wait for what comes next
        reporter.message(Level.ERROR, "", f"a bug: {traceback.format_exc()}")
