"""Retries Ceph operations that time out, so that a short stall of the cluster fails no job."""

from __future__ import annotations

import errno
import math
import threading
import time
from typing import Callable, TypeVar

from ..errors import BackupError
from ..model import Level
from .errors import ClusterError

Result = TypeVar("Result")
Check = Callable[[], None]
Report = Callable[[Level, str], None]

STOP_POLL = 0.2  # seconds between two checks whether the job has to stop


def _nothing(*_: object) -> None:
    pass


class CephRetry:
    """Retries a call until `limit` seconds have passed since its first timeout; 0: no retries.

    Each connection has its own, which threads may share. The beginning and the end of a stall are reported
    once for all calls, and each further timeout at debug level, which shows that the job is alive.
    """

    def __init__(self, limit: float = 0, check_stop: Check = _nothing, report: Report = _nothing) -> None:
        """`check_stop` raises if the job has to stop: nothing is retried any more."""
        self.limit = limit
        self.check_stop = check_stop
        self.report = report
        self._timeout = 0.0
        self._lock = threading.Lock()
        self._stalled = 0  # calls that have timed out and are being retried
        self._since = 0.0  # of time.monotonic(), when the first of them began
        self._answered = 0.0  # when the last of them was answered
        self._gave_up = 0.0  # when the last of them ran out of time
        self._silent = False  # the last call has timed out, retried or not

    def of_connection(self, timeout: float) -> CephRetry:
        """Return one for a connection whose operations time out after `timeout` seconds."""
        retry = CephRetry(self.limit, self.check_stop, self.report)
        retry._timeout = timeout
        return retry

    @property
    def gives_up(self) -> bool:
        """Whether the job has to stop and the cluster is silent: further timeouts would take too long."""
        return self._silent and self._stopping()

    def note_timeout(self) -> None:
        """Record a timeout of what nobody waits for: a job that has to stop spares itself further ones."""
        self._silent = True

    def call(
        self,
        call: Callable[[], Result],
        check_stop: Check | None = None,
        timed_out_at: Callable[[], float] | None = None,
        until: float = math.inf,
    ) -> Result:
        """Make the call, and repeat it while it times out. Raises what it raises.

        `check_stop` raises what ends the retries; without it a job that has to stop gets the timeout itself.
        `timed_out_at` returns when the call timed out, of time.monotonic(); by default just now. Nothing is
        retried after `until`, a time of the same clock.
        """
        first: float | None = None  # when the call timed out for the first time
        try:
            while True:
                try:
                    result = call()
                except ClusterError as error:
                    moment = timed_out_at() if timed_out_at else time.monotonic()
                    first = self._after_error(error, first, moment, check_stop, until)
                else:
                    self._note_answer(retried=first is not None)
                    return result
        finally:
            if first is not None:
                self._end_retries()

    def _after_error(
        self,
        error: ClusterError,
        first: float | None,
        moment: float,
        check_stop: Check | None,
        until: float,
    ) -> float | None:
        """Return when the call timed out for the first time, None if the cluster has answered since.

        Raises unless the call is to be made again.
        """
        if error.number != errno.ETIMEDOUT:
            raise error
        if first is None and moment < self._answered:
            return None  # an asynchronous call that nobody had waited for until now
        self._silent = True
        self._require_no_stop(error, check_stop)
        if time.monotonic() >= until:
            raise error
        if first is None:
            self._require_time(moment, moment <= self._gave_up, error)
        else:
            self._require_time(first, True, error)
        self._begin_retry(moment, first is None)
        return moment if first is None else first

    def _require_no_stop(self, error: ClusterError, check_stop: Check | None) -> None:
        """Raise if the job has to stop: the reason to stop, or the timeout."""
        if check_stop:
            check_stop()
        elif self._stopping():
            raise error

    def _require_time(self, first: float, tried: bool, error: ClusterError) -> None:
        """Raise if the time for retries is over: `limit` seconds after `first`, the call's first timeout.

        `tried`: at least one retry was made since `first`. If not, one is made even after the limit: a read
        may have timed out long before its result was needed.
        """
        if not self.limit:
            raise error
        if tried and time.monotonic() >= first + self.limit:
            self._gave_up = time.monotonic()
            message = f"{error.message}, retried for {self.limit:.0f} s (CEPH_STALL_TIMEOUT)"
            raise ClusterError(message, error.hint, error.number) from error

    def _stopping(self) -> bool:
        try:
            self.check_stop()
        except BackupError:
            return True
        return False

    def _begin_retry(self, moment: float, is_first: bool) -> None:
        with self._lock:
            self._stalled += is_first
            begins = is_first and self._stalled == 1
            if begins:
                self._since = moment - self._timeout
            seconds = time.monotonic() - self._since
        text = f"the cluster has not answered for {seconds:.0f} s"
        if begins:
            text += f"; waiting up to {self.limit:.0f} s (CEPH_STALL_TIMEOUT)"
        self.report(Level.WARNING if begins else Level.DEBUG, text)

    def _note_answer(self, retried: bool) -> None:
        self._silent = False
        if not retried:
            return
        with self._lock:
            self._answered = time.monotonic()
            seconds, ends = self._answered - self._since, self._stalled == 1
        if ends:
            self.report(Level.INFO, f"the cluster answers again, after {seconds:.0f} s")

    def _end_retries(self) -> None:
        with self._lock:
            self._stalled -= 1
