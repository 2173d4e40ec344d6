"""Every few seconds is often enough to say how far something is."""

from __future__ import annotations

import time

PROGRESS_INTERVAL = 5.0  # seconds between two reports of how far an image is


class Throttle:
    """Tells when the next report is due, the first one at once."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + PROGRESS_INTERVAL
        return True
