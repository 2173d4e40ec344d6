"""Limits the rate at which an image is read (MAX_READ_RATE), whatever limits the image itself has."""

from __future__ import annotations

import threading
import time
from typing import Callable

from .retry import STOP_POLL


class ReadRate:
    """Lets bytes through at a rate. Threads may share it."""

    def __init__(self, rate: int) -> None:
        """`rate` is in bytes per second, 0 for no limit."""
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0  # of time.monotonic(), when the next bytes may pass

    def wait(self, length: int, check_stop: Callable[[], None]) -> None:
        """Wait until `length` bytes may pass. Raises what `check_stop` raises."""
        if not self._rate:
            return
        with self._lock:
            begin = max(self._free_at, time.monotonic())
            self._free_at = begin + length / self._rate
        while (seconds := begin - time.monotonic()) > 0:
            check_stop()
            time.sleep(min(seconds, STOP_POLL))
