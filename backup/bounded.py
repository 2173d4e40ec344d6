"""Calls into libraries that may never return, bounded in time."""

from __future__ import annotations

import _thread
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any, Callable, TypeVar

Result = TypeVar("Result")


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """Give what the call returns, or raise what it raises; TimeoutError if it has not ended in time.

    The call then goes on in a thread of its own, which ends with it or with the process.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # to be raised where it is waited for
            outcome.set_exception(error)

    # not threading's Thread, whose start() waits for ever for a thread that had no memory to begin
    _thread.start_new_thread(run, ())
    try:
        return outcome.result(seconds)
    except FutureTimeout as error:
        if outcome.done():  # it was the call that raised this
            raise
        raise TimeoutError(f"no answer within {seconds:.0f} s") from error


class Bounded:
    """Stands before an object of a library: each of its methods gets so many seconds to return.

    What they return of the same library is bounded too. `bare` is the object itself.
    """

    def __init__(self, target: Any, seconds: float) -> None:
        self.bare = target
        self._seconds = seconds

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.bare, name)

        def call(*arguments: Any) -> Any:
            bare = [one.bare if isinstance(one, Bounded) else one for one in arguments]
            return self._bounded(within(self._seconds, partial(method, *bare)))

        return call

    def _bounded(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._bounded(one) for one in result]
        ours = type(result).__module__ == type(self.bare).__module__
        return Bounded(result, self._seconds) if ours else result

    def within(self, seconds: float) -> Bounded:
        """Give the same with another bound."""
        return Bounded(self.bare, seconds)
