"""Limits how often progress is reported: twice a second, which costs little and looks live."""

from __future__ import annotations

import time

STEP = 0.5  # seconds between two progress reports of an image


class ProgressInterval:
    """Decides when a report is due: the first, the last, and between them one every STEP seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self, done: int, size: int) -> bool:
        now = time.monotonic()
        if now < self._next and done < size:
            return False
        self._next = now + STEP
        return True
