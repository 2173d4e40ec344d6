"""backup/system/parallel_calls.py: parallel calls, of which those that hang delay nothing."""

from __future__ import annotations

import threading
import time
from typing import Callable

import pytest

from backup.errors import Interrupted
from backup.system.parallel_calls import Calls
from backup.system.stop_request import StopRequest
from backup.system.time_limit import awaited

from ..raising import raises
from ..waiting import wait_until


class Closed:
    """Records when the resource that the calls use is closed."""

    def __init__(self) -> None:
        self.closed = 0

    def __call__(self) -> None:
        self.closed += 1


@pytest.fixture
def closed() -> Closed:
    return Closed()


def test_results_are_in_order_and_errors_are_raised_where_they_are_awaited(closed: Closed) -> None:
    with Calls(4, close=closed) as calls:
        assert list(calls.map(lambda number: 2 * number, range(100))) == [*range(0, 200, 2)]
        failed = calls.submit(lambda: 1 // 0)
        assert closed.closed == 0
        with pytest.raises(ZeroDivisionError):
            awaited(failed, 5)
    assert closed.closed == 1


def test_the_number_of_parallel_calls_is_limited() -> None:
    most = now = 0
    lock = threading.Lock()
    pair = threading.Barrier(2, timeout=10)

    def call(_number: int) -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        pair.wait()  # two of them have to be there at once
        with lock:
            now -= 1
        pair.wait()

    with Calls(2) as calls:
        list(calls.map(call, range(6)))
    assert most == 2


def test_a_call_that_hangs_delays_neither_the_block_nor_a_stop(closed: Closed) -> None:
    go_on, stop = threading.Event(), StopRequest()
    began = time.monotonic()
    with raises("interrupted", Interrupted), Calls(1, stop.check, closed) as calls:
        hung = calls.submit(go_on.wait)
        never = calls.submit(lambda: 1)
        threading.Timer(0.1, stop.request, [Interrupted("interrupted", 15)]).start()
        list(calls.map(lambda _: None, [1]))
    assert time.monotonic() < began + 2
    assert closed.closed == 0, "a call still uses it"
    go_on.set()
    wait_until(lambda: closed.closed == 1, 5, "closed after the last call")
    assert (hung.done(), never.done()) == (True, False)


def test_running_calls_are_awaited_for_the_grace(closed: Closed) -> None:
    go_on = threading.Event()
    with Calls(1, close=closed, grace=10) as calls:
        ended = calls.submit(lambda: go_on.wait(5))
        threading.Timer(0.1, go_on.set).start()
        wait_until(lambda: ended.running() or calls._under_way, 5, "it has begun")
    assert (ended.result(0), closed.closed) == (True, 1)


@pytest.mark.parametrize("call", [lambda: 1, lambda: 1 // 0])
def test_after_all_outcomes_no_call_is_running(call: Callable[[], int], closed: Closed) -> None:
    for _ in range(200):
        with Calls(2, close=closed) as calls:
            outcomes = [calls.submit(call) for _ in range(3)]
            for outcome in outcomes:
                outcome.exception(5)
        assert closed.closed == 1, "by the block itself"
        closed.closed = 0
