"""Time limits for calls into libraries that may never return."""

from __future__ import annotations

import _thread
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, TypeVar

from ..errors import TransientError

Result = TypeVar("Result")
CheckStop = Callable[[], None]  # raises the reason to stop, if there is one

STOP_POLL = 0.2  # seconds between two checks whether to stop


class NoThread(TransientError, RuntimeError):
    """A thread cannot be started: at the limit of processes, or out of memory."""


def never_stop() -> None:
    """A `check_stop` for waits that a request to stop must not end."""


def within(seconds: float, call: Callable[[], Result], check_stop: CheckStop = never_stop) -> Result:
    """Return what the call returns, or raise what it raises; TimeoutError if it has not ended in time.

    Also raises what `check_stop` raises, which is called repeatedly. In both cases the call goes on in a
    thread of its own, which ends with the call or the process.
    """
    return awaited(begun(call), seconds, check_stop)


def begun(call: Callable[[], Result]) -> Future[Result]:
    """Make the call in a thread of its own; return its outcome to come. Raises NoThread."""
    outcome: Future[Result] = Future()
    with thread_errors():
        # not threading's Thread, whose start() waits for ever for a thread that had no memory to begin
        _thread.start_new_thread(carry_out, (call, outcome))
    return outcome


@contextmanager
def thread_errors() -> Iterator[None]:
    """Map the error of a thread that cannot be started in the block to NoThread."""
    try:
        yield
    except RuntimeError as error:
        raise NoThread(str(error), "fewer WORKERS? see TasksMax of the service, and free memory") from error


def carry_out(call: Callable[[], Result], outcome: Future[Result]) -> None:
    """Make the call, and set its result or exception as the outcome."""
    try:
        result = call()
    except BaseException as error:  # raised where the outcome is awaited
        outcome.set_exception(error)
    else:
        outcome.set_result(result)


def awaited(outcome: Future[Result], seconds: float, check_stop: CheckStop = never_stop) -> Result:
    """Wait for a call's outcome and return it. Raises TimeoutError, and what `check_stop` raises."""
    deadline = time.monotonic() + seconds
    while not outcome.done():
        check_stop()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no answer within {seconds:.0f} s")
        wait([outcome], min(left, STOP_POLL))
    return outcome.result()


_abandoned: list[Future[Any]] = []


def abandon(outcome: Future[Any]) -> None:
    """Leave a call to itself: the process ends without waiting for it, or for threads that it started."""
    _abandoned.append(outcome)


def any_abandoned() -> bool:
    """Return whether an abandoned call is still under way: Python's own way to end the process would hang."""
    return not all(outcome.done() for outcome in _abandoned)


class Bounded:
    """Wraps an object of a library: each method gets `seconds` to return.

    Objects of the same library that they return are wrapped too. `bare` is the object itself. `check_stop`
    ends a wait earlier: only for calls that may be abandoned at any moment.
    """

    def __init__(
        self,
        target: Any,
        seconds: float,
        check_stop: CheckStop = never_stop,
        calls: set[Future[Any]] | None = None,
    ) -> None:
        """`calls` are those under way of all objects that stem from the same one."""
        self.bare = target
        self._seconds = seconds
        self.check_stop = check_stop
        self._calls = set() if calls is None else calls

    @property
    def under_way(self) -> bool:
        """Whether a call goes on, of this object or one that it returned; when none is awaited, abandoned."""
        return any(not call.done() for call in list(self._calls))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.bare, name)

        def call(*arguments: Any) -> Any:
            bare = [one.bare if isinstance(one, Bounded) else one for one in arguments]
            outcome = begun(partial(method, *bare))
            self._calls.add(outcome)
            outcome.add_done_callback(self._calls.discard)
            return self._bounded(awaited(outcome, self._seconds, self.check_stop))

        return call

    def _bounded(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._bounded(one) for one in result]
        ours = type(result).__module__ == type(self.bare).__module__
        return self._with(result, self._seconds, self.check_stop) if ours else result

    def within(self, seconds: float) -> Bounded:
        """Return the same object with another limit."""
        return self._with(self.bare, seconds, self.check_stop)

    def until_stop(self, check_stop: CheckStop) -> Bounded:
        """Return the same object, whose calls are abandoned on a request to stop."""
        return self._with(self.bare, self._seconds, check_stop)

    def _with(self, target: Any, seconds: float, check_stop: CheckStop) -> Bounded:
        return Bounded(target, seconds, check_stop, self._calls)
