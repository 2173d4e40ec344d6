"""backup/system/time_limit.py: a call that never returns costs its limit, and no more."""

from __future__ import annotations

import _thread
import threading
import time
from concurrent.futures import Future

import pytest

from backup.errors import BackupError, Interrupted
from backup.system.stop_request import StopRequest
from backup.system.time_limit import Bounded, NoThread, awaited, within

from ..raising import raises
from ..waiting import wait_until


def no_thread(*_: object) -> int:
    raise RuntimeError("can't start new thread")


class Library:
    """A library object: some methods are slow, one returns another such object."""

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


def test_results_and_errors_are_passed_on() -> None:
    library = Bounded(Library(), 5)
    assert library.add(1, 2) == (1, 2)
    with pytest.raises(ValueError, match="no"):
        library.fail()
    with pytest.raises(TimeoutError, match="its own"):
        within(5, _raise_timeout)


def _raise_timeout() -> None:
    raise TimeoutError("its own")


def test_a_thread_that_cannot_be_started_is_an_error_that_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_thread, "start_new_thread", no_thread)
    with raises("can't start new thread", NoThread) as caught:
        within(5, Library().hang)
    assert isinstance(caught.value, BackupError)
    assert caught.value.transient


def test_a_call_that_hangs_is_abandoned_and_others_go_on() -> None:
    bare = Library()
    library = Bounded(bare, 5)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        library.within(0.05).hang()
    assert time.monotonic() < began + 4
    assert library.add(1, 2) == (1, 2)
    bare.go_on.set()
    assert library.hang()


def test_objects_that_the_library_returns_are_limited_too_and_passed_back_bare() -> None:
    bare = Library()
    (other,) = Bounded(bare, 1).others()
    with pytest.raises(TimeoutError):
        other.hang()
    assert other.same(other)
    bare.go_on.set()


def test_whether_a_call_of_any_of_its_objects_goes_on_is_known() -> None:
    bare = Library()
    library = Bounded(bare, 5)
    (other,) = library.others()
    assert not library.under_way
    with pytest.raises(TimeoutError):
        other.within(0.01).hang()
    assert library.under_way
    bare.go_on.set()
    wait_until(lambda: not library.under_way, 10, "the call ends")


def test_a_stop_ends_the_wait_for_a_call_and_for_calls_of_returned_objects() -> None:
    stop = StopRequest()
    bare = Library()
    (other,) = Bounded(bare, 60).until_stop(stop.check).others()
    threading.Timer(0.1, stop.request, [Interrupted("interrupted", 15)]).start()
    began = time.monotonic()
    with raises("interrupted", Interrupted):
        other.hang()
    assert time.monotonic() < began + 4
    bare.go_on.set()


def test_calls_without_a_stop_check_are_awaited_after_a_stop() -> None:
    stop = StopRequest()
    stop.request(Interrupted("interrupted", 15))
    bare = Library()
    threading.Timer(0.1, bare.go_on.set).start()
    assert Bounded(bare, 60).hang()


def test_an_existing_outcome_counts_even_if_no_time_is_left() -> None:
    outcome: Future[int] = Future()
    outcome.set_result(1)
    assert awaited(outcome, -1) == 1
