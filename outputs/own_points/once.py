"""A call of which all threads get the result of the first one."""

from __future__ import annotations

import threading
from typing import Callable, Generic, TypeVar

Result = TypeVar("Result")


class Once(Generic[Result]):
    """Calls `call` when it is called for the first time; later it returns the same result."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._results: list[Result] = []

    def __call__(self) -> Result:
        with self._lock:
            if not self._results:
                self._results.append(self._call())
            return self._results[0]
