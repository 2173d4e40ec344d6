"""A watchdog on paper, for runs whose workers are on paper too."""

from __future__ import annotations


class NoWatchdog:
    """Watches no process."""

    lifeline = None

    def wait_until_ready(self, check_stop: object) -> None:
        """It is ready from the start."""

    def check(self) -> None:
        """It runs."""
