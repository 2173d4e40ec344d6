"""Calls in parallel threads, of which some may never return."""

from __future__ import annotations

import _thread
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Callable, TypeVar

from .time_limit import CheckStop, awaited, carry_out, never_stop

Item = TypeVar("Item")
Result = TypeVar("Result")


class Calls:
    """A pool of threads that make calls, first come, first served.

    Unlike those of ThreadPoolExecutor its threads delay neither the end of the block nor that of the process.
    At the end of the block, calls that have not begun are dropped, and running ones are awaited for `grace`
    seconds; `close` is called when the last call has ended, however late.
    """

    def __init__(
        self,
        number: int,
        check_stop: CheckStop = never_stop,
        close: Callable[[], None] = never_stop,
        grace: float = 0.0,
    ) -> None:
        """`check_stop` raises the reason to stop while results are awaited."""
        self._number = number
        self._check_stop = check_stop
        self._close = close
        self._grace = grace
        self._waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._threads = 0
        self._under_way = 0
        self._closed = False
        self._changed = threading.Condition()

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._waiting.clear()
            self._changed.wait_for(lambda: not self._under_way, self._grace)
            self._closed = True
            idle = not self._under_way
        if idle:
            self._close()

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        """Make the call as soon as a thread is free; return its future outcome."""
        outcome: Future[Result] = Future()
        with self._changed:
            self._waiting.append((call, outcome))
            more = self._threads < self._number
            self._threads += more
        if more:
            _thread.start_new_thread(self._work, ())
        return outcome

    def map(
        self, call: Callable[[Item], Result], items: Sequence[Item], seconds: float = math.inf
    ) -> Iterator[Result]:
        """Yield the results of the call for the items, in order. Raises TimeoutError, BackupError."""
        outcomes = [self.submit(partial(call, item)) for item in items]
        for outcome in outcomes:
            yield awaited(outcome, seconds, self._check_stop)

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            call, outcome = taken
            carry_out(partial(self._counted, call), outcome)

    def _counted(self, call: Callable[[], Result]) -> Result:
        """Make the call, and count it as ended before its outcome is set."""
        try:
            return call()
        finally:
            self._count_down()

    def _next(self) -> tuple[Callable[[], Any], Future[Any]] | None:
        with self._changed:
            if not self._waiting:
                self._threads -= 1
                return None
            self._under_way += 1
            return self._waiting.popleft()

    def _count_down(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()
            last = self._closed and not self._under_way
        if last:
            self._close()
