"""Stopping in good order: a request is noted at once and acted on at the next safe place.

An exception thrown by a signal handler could hit between two steps that belong together, such as
a freeze and the note that the guest has to be thawed. So handlers only note the request.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType

from ..errors import BackupError, Interrupted, NotNow

LEASE_HINT = "was the cluster, or this node, stalled for longer than LOCK_DURATION?"


class StopRequest:
    """Holds the first reason to stop. Safe to use from threads and signal handlers."""

    def __init__(self) -> None:
        self._reason: BackupError | None = None
        self._signals = 0
        self._first_signal = math.inf  # of time.monotonic()
        self._lease_ends = math.inf
        self._lease_grace = 0.0
        self.signal_number = 0

    @property
    def requested(self) -> bool:
        return self._reason is not None

    @property
    def insisted(self) -> bool:
        """Whether a second signal came."""
        return self._signals > 1

    @property
    def signalled_for(self) -> float:
        """Seconds since the first signal; 0 before it."""
        return max(0.0, time.monotonic() - self._first_signal)

    def request(self, reason: BackupError) -> None:
        self._reason = self._reason or reason

    @property
    def leased(self) -> bool:
        """Whether the lock that has to be renewed is provably held now."""
        return time.monotonic() <= self._lease_ends

    def lease_until(self, moment: float, grace: float = 0) -> None:
        """Stop `grace` seconds after this moment of time.monotonic(), unless called again before.

        Until the moment a lock is provably held, in the seconds after it the lock may still be renewed.
        """
        self._lease_ends, self._lease_grace = moment, grace

    def check(self) -> None:
        """Raise the reason to stop, if there is one."""
        if time.monotonic() > self._lease_ends + self._lease_grace:
            self.request(NotNow("the domain's lock could not be renewed in time", LEASE_HINT))
        if self._reason is not None:
            raise self._reason

    def check_leased(self) -> None:
        """Raise the reason to stop, if there is one; raise NotNow if the lock is not provably held now."""
        self.check()
        if not self.leased:
            raise NotNow("the domain's lock has expired and is not renewed yet", LEASE_HINT)

    def check_insisted(self) -> None:
        """Raise the reason to stop if a second signal came: for what is done although one did."""
        if self.insisted:
            self.check()

    def on_signals(self, *numbers: signal.Signals) -> None:
        """Let these signals request the stop."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signal handlers belong to the main thread")
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:  # ignored on purpose: nohup
                signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        self._first_signal = min(self._first_signal, time.monotonic())
        self.signal_number = self.signal_number or number
        self.request(Interrupted("interrupted", number))
