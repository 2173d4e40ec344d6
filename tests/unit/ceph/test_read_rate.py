"""backup/ceph/read_rate.py: MAX_READ_RATE."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from backup.ceph.read_rate import ReadRate
from backup.errors import BackupError
from backup.system.stop_request import StopRequest

from ..raising import raises


def never() -> None:
    pass


def test_bytes_pass_at_the_rate_also_of_several_threads() -> None:
    rate = ReadRate(1000)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: rate.wait(100, never), range(6)))
    assert 0.5 <= time.monotonic() - began < 10


def test_time_that_was_not_used_does_not_count_later() -> None:
    rate = ReadRate(1000)
    rate.wait(1, never)
    time.sleep(0.3)
    began = time.monotonic()
    for _ in range(3):
        rate.wait(100, never)
    assert time.monotonic() - began >= 0.2


def test_without_a_rate_nothing_waits() -> None:
    began = time.monotonic()
    rate = ReadRate(0)
    for _ in range(100):
        rate.wait(1 << 40, never)
    assert time.monotonic() - began < 10


def test_a_job_that_has_to_stop_waits_no_longer() -> None:
    stop = StopRequest()
    rate = ReadRate(1)
    rate.wait(1000, stop.check)
    stop.request(BackupError("interrupted"))
    with raises("interrupted"):
        rate.wait(1, stop.check)
