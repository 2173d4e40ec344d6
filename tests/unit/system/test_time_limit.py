"""backup/system/time_limit.py: a call that never returns costs its bound, and no more."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from backup.errors import Interrupted
from backup.system.stop_request import StopRequest
from backup.system.time_limit import Bounded, awaited, within

from ..raising import raises


class Library:
    """Has methods, some of which take their time, and gives out more of its kind."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def add(self, one: object, other: object) -> object:
        return (one, other)

    def hang(self) -> bool:
        return self.go_on.wait(5)

    def fail(self) -> None:
        raise ValueError("no")

    def others(self) -> list[Library]:
        return [self]

    def same(self, other: object) -> bool:
        return other is self


def test_what_is_returned_and_raised_comes_through() -> None:
    library = Bounded(Library(), 5)
    assert library.add(1, 2) == (1, 2)
    with pytest.raises(ValueError, match="no"):
        library.fail()
    with pytest.raises(TimeoutError, match="its own"):
        within(5, _raise_timeout)


def _raise_timeout() -> None:
    raise TimeoutError("its own")


def test_a_call_that_hangs_is_given_up_and_the_others_go_on() -> None:
    bare = Library()
    library = Bounded(bare, 0.05)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        library.hang()
    assert time.monotonic() < began + 2
    assert library.add(1, 2) == (1, 2)
    bare.go_on.set()
    assert library.within(5).hang()


def test_what_the_library_gives_out_is_bounded_too_and_taken_back_bare() -> None:
    bare = Library()
    (other,) = Bounded(bare, 0.05).others()
    with pytest.raises(TimeoutError):
        other.hang()
    assert other.same(other)
    bare.go_on.set()


def test_a_stop_is_heard_while_a_call_hangs_and_by_what_it_would_have_given_out() -> None:
    stop = StopRequest()
    bare = Library()
    (other,) = Bounded(bare, 60).until_stop(stop.check).others()
    threading.Timer(0.1, stop.request, [Interrupted("interrupted", 15)]).start()
    began = time.monotonic()
    with raises("interrupted", Interrupted):
        other.hang()
    assert time.monotonic() < began + 2
    bare.go_on.set()


def test_what_is_not_to_be_given_up_outlasts_a_stop() -> None:
    stop = StopRequest()
    stop.request(Interrupted("interrupted", 15))
    bare = Library()
    threading.Timer(0.1, bare.go_on.set).start()
    assert Bounded(bare, 60).hang()


def test_an_outcome_that_is_there_counts_though_no_time_is_left() -> None:
    outcome: Future[int] = Future()
    outcome.set_result(1)
    assert awaited(outcome, -1) == 1
