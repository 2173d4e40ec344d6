"""backup/ceph/retry.py: timeouts are retried for a while, and a stall is reported once."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import pytest

from backup.ceph import retry as ceph_retry
from backup.ceph.errors import ClusterError
from backup.ceph.retry import CephRetry
from backup.errors import BackupError
from backup.model import Level
from backup.system.stop_request import StopRequest

from ..raising import raises
from ..waiting import wait_until


class Clock:
    """A clock that advances with each call that times out."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Silent:
    """A call that times out `times` times, after a minute each, and then returns an answer."""

    def __init__(self, clock: Clock, times: float) -> None:
        self._clock = clock
        self.times = times
        self.made = 0

    def __call__(self) -> str:
        self.made += 1
        if self.made > self.times:
            return "answer"
        self._clock.now += 60
        raise ClusterError("cannot read image vms/a: connection timed out", "see", errno.ETIMEDOUT)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ceph_retry, "time", clock)
    return clock


class Reports(list[tuple[Level, str]]):
    def report(self, level: Level, text: str) -> None:
        self.append((level, text))


def test_a_timeout_is_retried_and_the_begin_and_end_of_a_stall_are_reported_once(clock: Clock) -> None:
    reports = Reports()
    call, retry = Silent(clock, 3), CephRetry(900, report=reports.report).of_connection(60)
    assert retry.call(call) == "answer"
    assert reports == [
        (
            Level.WARNING,
            "the cluster has not answered for 60 s; waiting up to 900 s (CEPH_STALL_TIMEOUT)",
        ),
        (Level.DEBUG, "the cluster has not answered for 120 s"),
        (Level.DEBUG, "the cluster has not answered for 180 s"),
        (Level.INFO, "the cluster answers again, after 180 s"),
    ]


def test_a_call_fails_when_the_time_for_retries_is_over(clock: Clock) -> None:
    call, retry = Silent(clock, 99), CephRetry(900).of_connection(60)
    message = "cannot read image vms/a: connection timed out, retried for 900 s (CEPH_STALL_TIMEOUT)"
    with raises(message, ClusterError) as caught:
        retry.call(call)
    assert call.made == 16, "at 60, 120, ... 960 s: 900 s after the first timeout"
    assert caught.value.transient


def test_without_a_limit_nothing_is_retried(clock: Clock) -> None:
    call = Silent(clock, 1)
    with raises("cannot read image vms/a: connection timed out", ClusterError) as caught:
        CephRetry().of_connection(60).call(call)
    assert (call.made, caught.value.message) == (1, "cannot read image vms/a: connection timed out")


def test_nothing_is_retried_when_it_is_of_no_use_any_more(clock: Clock) -> None:
    call, reports = Silent(clock, 99), Reports()
    retry = CephRetry(900, report=reports.report).of_connection(60)
    with raises("cannot read image vms/a: connection timed out", ClusterError):
        retry.call(call, until=clock.now + 120)
    assert call.made == 2
    assert [level for level, _ in reports] == [Level.WARNING]
    with raises("cannot read image vms/a: connection timed out", ClusterError):
        retry.call(call, until=clock.now)
    assert (call.made, len(reports)) == (3, 1), "tried once, and no wait is announced"


def test_other_errors_are_not_retried(clock: Clock) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise ClusterError("no such image", number=errno.ENOENT)

    with raises("no such image"):
        CephRetry(900).call(call)
    assert len(calls) == 1


@pytest.mark.parametrize("given", [True, False], ids=["the reason to stop", "the timeout"])
def test_a_job_that_has_to_stop_retries_nothing(clock: Clock, given: bool) -> None:
    stop, call = StopRequest(), Silent(clock, 99)
    stop.request(BackupError("interrupted"))
    retry = CephRetry(900, stop.check)
    with raises("interrupted" if given else "cannot read image vms/a: connection timed out"):
        retry.call(call, stop.check if given else None)
    assert call.made == 1
    assert retry.gives_up, "the cleanup would only time out too"
    call.times = 0
    retry.call(call)
    assert not retry.gives_up, "it answers"


def test_a_timeout_that_is_noticed_after_the_stall_is_retried(clock: Clock) -> None:
    reports = Reports()
    retry = CephRetry(900, report=reports.report).of_connection(60)
    began = clock.now
    retry.call(Silent(clock, 15))  # the stall ends just in time
    before = len(reports)
    late = Silent(clock, 1)
    assert retry.call(late, timed_out_at=lambda: began + 60) == "answer"
    assert (late.made, len(reports)) == (2, before), "that stall was reported"


def test_a_timeout_of_long_ago_is_retried_at_least_once_unless_other_retries_failed(clock: Clock) -> None:
    retry = CephRetry(900).of_connection(60)
    long_ago = clock.now
    clock.now += 5000  # in which the output accepted no data
    assert retry.call(Silent(clock, 1), timed_out_at=lambda: long_ago) == "answer"
    with pytest.raises(ClusterError):
        retry.call(Silent(clock, 99))
    late, moment = Silent(clock, 1), clock.now - 950
    with pytest.raises(ClusterError):
        retry.call(late, timed_out_at=lambda: moment)
    assert late.made == 1


def test_several_calls_in_one_stall_report_it_once() -> None:
    reports, go_on, times = Reports(), threading.Event(), threading.Semaphore(4)

    def call() -> None:
        if not go_on.is_set():
            times.acquire(timeout=1)
            raise ClusterError("timed out", number=errno.ETIMEDOUT)

    def reported(level: Level) -> int:
        return len([one for one, _ in reports if one is level])

    retry = CephRetry(900, report=reports.report)
    with ThreadPoolExecutor(4) as threads:
        calls: list[Callable[[], None]] = [call] * 4
        under_way = [threads.submit(retry.call, one) for one in calls]
        wait_until(lambda: reported(Level.DEBUG) >= 6, 10, "each has timed out more than once")
        go_on.set()
        for one in under_way:
            one.result()
    assert (reported(Level.WARNING), reported(Level.INFO)) == (1, 1)
