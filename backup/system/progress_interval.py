"""Twice a second is often enough to say how far something is: it costs nothing, and looks alive."""

from __future__ import annotations

import time

STEP = 0.5  # seconds between two reports of how far an image is


class ProgressInterval:
    """Tells when a report is due: the first, the last, and between them one every STEP seconds."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self, done: int, size: int) -> bool:
        now = time.monotonic()
        if now < self._next and done < size:
            return False
        self._next = now + STEP
        return True
