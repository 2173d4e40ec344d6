"""Requests to stop: signal handlers only record them, and code checks for them where it can stop safely.

An exception raised by a signal handler could separate two steps that belong together, such as a freeze and
the record that the guest has to be thawed.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType

from ..errors import BackupError, Interrupted, TransientError

LEASE_HINT = "the cluster, or this node, may have stalled for longer than LOCK_DURATION"


class StopRequest:
    """Holds the first reason to stop. Safe to use from threads and signal handlers."""

    def __init__(self) -> None:
        self._reason: BackupError | None = None
        self._signals = 0
        self._first_signal = math.inf  # of time.monotonic()
        self.lease_ends = math.inf  # of time.monotonic(); see lease_until
        self._lease_grace = 0.0
        self.signal_number = 0

    @property
    def requested(self) -> bool:
        return self._reason is not None

    @property
    def signalled_twice(self) -> bool:
        """Whether a second signal arrived."""
        return self._signals > 1

    @property
    def seconds_since_signal(self) -> float:
        """Seconds since the first signal, 0 before."""
        return max(0.0, time.monotonic() - self._first_signal)

    def request(self, reason: BackupError) -> None:
        self._reason = self._reason or reason

    @property
    def leased(self) -> bool:
        """Whether the lock that has to be renewed is provably valid now."""
        return time.monotonic() <= self.lease_ends

    def lease_until(self, moment: float, grace: float = 0) -> None:
        """Request a stop `grace` seconds after `moment` (of time.monotonic()), unless called again before.

        Until `moment` a lock is provably valid; during the grace it may still be renewed.
        """
        self.lease_ends, self._lease_grace = moment, grace

    def check(self) -> None:
        """Raise the reason to stop, if any."""
        if time.monotonic() > self.lease_ends + self._lease_grace:
            self.request(TransientError("the domain's lock could not be renewed in time", LEASE_HINT))
        if self._reason is not None:
            raise self._reason

    def check_leased(self) -> None:
        """Raise the reason to stop, if any; raise TransientError if the lock is not provably valid now."""
        self.check()
        if not self.leased:
            raise TransientError("the domain's lock has expired and is not renewed yet", LEASE_HINT)

    def check_signalled_twice(self) -> None:
        """Raise the reason to stop if a second signal arrived: for work that goes on after the first."""
        if self.signalled_twice:
            self.check()

    def on_signals(self, *numbers: signal.Signals) -> None:
        """Make these signals request a stop."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signal handlers can only be set in the main thread")
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:  # ignored on purpose: nohup
                signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        self._first_signal = min(self._first_signal, time.monotonic())
        self.signal_number = self.signal_number or number
        self.request(Interrupted("interrupted", number))
