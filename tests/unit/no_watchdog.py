"""A watchdog on paper, for runs whose workers are on paper too."""

from __future__ import annotations


class NoWatchdog:
    """Watches nobody."""

    lifeline = None

    def revive(self) -> None:
        """It has not ended."""
