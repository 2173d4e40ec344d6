"""A read or a write under way on paper."""

from __future__ import annotations

import threading
from typing import Callable


class PaperCompletion:
    """What librbd gives for it: it can be waited for, and has a result."""

    def __init__(self, result: int, arrived: Callable[[], None]) -> None:
        self._result = result
        self._arrived = arrived
        self._done = threading.Event()
        self.settled = False

    def arrive(self) -> None:
        self._arrived()
        self._done.set()

    def wait_for_complete_and_cb(self) -> None:
        assert self._done.wait(timeout=5)
        self.settled = True

    def get_return_value(self) -> int:
        return self._result
