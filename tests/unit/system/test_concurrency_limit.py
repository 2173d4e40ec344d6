"""system/concurrency_limit.py: a limit across all processes of the node."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from backup.errors import Interrupted
from backup.system import concurrency_limit
from backup.system.concurrency_limit import Slots, free_slots_of
from backup.system.stop_request import StopRequest

from ..waiting import wait_until

HOLDER = """
import sys
from backup.system.concurrency_limit import Slots
with Slots(sys.argv[1], "deletion", 1).one():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_limit_is_never_exceeded(tmp_path: Path) -> None:
    two = Slots(str(tmp_path), "deletion", 2)
    most = now = 0
    lock = threading.Lock()
    pair = threading.Barrier(2, timeout=10)

    def hold() -> None:
        nonlocal most, now
        with two.one():
            with lock:
                now += 1
                most = max(most, now)
            pair.wait()  # two of them have to be there at once
            with lock:
                now -= 1
            pair.wait()

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(hold) for _ in range(6)]:
            done.result()
    assert most == 2


def test_the_slot_of_another_process_is_free_when_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        got = threading.Event()

        def get() -> None:
            with Slots(str(tmp_path), "deletion", 1).one():
                got.set()

        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(get)
            assert not got.wait(0.3)
            holder.kill()
            wait_until(got.is_set, 10, "it is free")
            waiting.result()


def test_nobody_waits_for_the_slots_of_a_process_that_does_not_end(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
        ExitStack() as ours,
    ):
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        one = Slots(str(tmp_path), "deletion", 1)
        assert not one._any_taken(ours)
        free_slots_of(holder.pid, str(tmp_path), "another")
        free_slots_of(os.getpid(), str(tmp_path), "deletion")
        assert not one._any_taken(ours)
        free_slots_of(holder.pid, str(tmp_path), "deletion")
        assert one._any_taken(ours)
        assert not one._any_taken(ours), "it is occupied again"
        free_slots_of(holder.pid, str(tmp_path), "deletion")
        assert not one._any_taken(ours), "that of a process that goes on stays"
        holder.kill()


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Path]:
    """A directory whose only slot stays occupied."""
    with Slots(str(tmp_path), "deletion", 1).one():
        yield tmp_path


def test_a_slot_of_a_hung_process_is_waited_for_once_then_the_work_goes_on_with_a_warning(
    taken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrency_limit, "LIMIT", 0.5)
    warnings: list[str] = []
    began = time.monotonic()
    waiting = Slots(str(taken), "deletion", 1, warnings.append)
    for _ in range(20):
        with waiting.one():
            pass
    assert 0.5 < time.monotonic() - began < 5
    (warning,) = warnings
    assert warning.startswith("no slot for a deletion within 0 s: continuing without one (limit 1) (hint: ")


def test_a_stop_shortens_the_wait_for_a_slot(taken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency_limit, "STOPPED_LIMIT", 0.2)
    warnings: list[str] = []
    stop = StopRequest()
    threading.Timer(0.2, stop.request, [Interrupted("interrupted", 15)]).start()
    began = time.monotonic()
    with Slots(str(taken), "deletion", 1, warnings.append, lambda: stop.requested).one():
        pass
    assert (0.4 < time.monotonic() - began < 5, warnings) == (True, [])


def test_without_a_directory_there_is_no_limit() -> None:
    with Slots("/nowhere", "deletion", 1).one(), Slots("/nowhere", "deletion", 1).one():
        pass
