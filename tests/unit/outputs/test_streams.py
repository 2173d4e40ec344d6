"""outputs/streams.py: images of a domain at the same time, within one limit; one failure stops all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import BackupError, Interrupted
from backup.model import Level
from backup.protocols import Job, SnapshotSource
from backup.system.concurrency_limit import Slots
from outputs import streams as module
from outputs.restic import Restic
from outputs.streams import Streams

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..raising import raises
from ..recorder import Recorder
from ..samples import rbd_disk, settings
from ..waiting import wait_until

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("nothing_left")


def sources(number: int) -> Sequence[MemorySource]:
    return [MemorySource(MemorySnapshot(1), rbd_disk(f"vd{one}", f"vms/{one}")) for one in range(number)]


def streams(directory: Path, count: int) -> Streams:
    return Streams(Slots(str(directory), "stream", count), "web")


def until_stopped(job: Job) -> None:
    """Go on for as long as nobody stops it, but not for ever."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        job.check_stop()
        time.sleep(0.002)
    raise AssertionError("it was not stopped")


def test_four_images_are_streamed_at_the_same_time_and_returned_in_their_order(tmp_path: Path) -> None:
    together = threading.Barrier(4, timeout=20)

    def save(source: SnapshotSource, _job: Job) -> str:
        together.wait()
        return source.disk.target

    saved = streams(tmp_path, 4).each(sources(4), JobOnPaper(), save)
    assert saved == ["vd0", "vd1", "vd2", "vd3"]


@pytest.mark.parametrize(("streams", "workers", "count"), [(0, 5, 5), (7, 5, 7), (1, 5, 1)])
def test_there_are_as_many_streams_as_workers_unless_they_are_set(
    streams: int, workers: int, count: int
) -> None:
    assert Restic.from_settings(settings(streams=streams, workers=workers)).streams == count


def test_nothing_is_streamed_of_a_domain_without_images(tmp_path: Path) -> None:
    assert streams(tmp_path, 2).each([], JobOnPaper(), lambda *_: 1) == []


def test_the_limit_holds_for_all_domains_together(tmp_path: Path) -> None:
    lock = threading.Lock()
    now = most = 0

    def save(_source: SnapshotSource, _job: Job) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1

    with ThreadPoolExecutor(3) as domains:
        jobs = [domains.submit(streams(tmp_path, 2).each, sources(3), JobOnPaper(), save) for _ in range(3)]
        for job in jobs:
            job.result()
    assert most == 2


def test_the_first_error_is_raised_the_others_stop_and_no_other_image_begins(tmp_path: Path) -> None:
    begun: list[str] = []
    together = threading.Barrier(2, timeout=20)

    def save(source: SnapshotSource, job: Job) -> None:
        begun.append(source.disk.target)
        together.wait()
        if source.disk.target == "vd1":
            raise BackupError("the disk is broken")
        until_stopped(job)

    with raises("the disk is broken"):
        streams(tmp_path, 2).each(sources(5), JobOnPaper(), save)
    assert sorted(begun) == ["vd0", "vd1"]


def test_a_bug_stops_the_others_too(tmp_path: Path) -> None:
    def save(source: SnapshotSource, job: Job) -> None:
        if source.disk.target == "vd0":
            raise RuntimeError("a bug")
        until_stopped(job)

    with pytest.raises(RuntimeError, match="a bug"):
        streams(tmp_path, 3).each(sources(3), JobOnPaper(), save)


STOPPED_WORKER = """
import signal, sys, time
from backup.system.concurrency_limit import Slots
from backup.system.stop_request import StopRequest
from outputs.streams import Streams
from tests.unit.jobs_on_paper import JobOnPaper
from tests.unit.outputs.test_streams import sources

stop = StopRequest()
stop.on_signals(signal.SIGHUP, signal.SIGTERM)
job = JobOnPaper()
job.check_stop = stop.check

def save(_source, job):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        job.check_stop()
        time.sleep(0.1)
    print("not heard")

print("begun", flush=True)
try:
    Streams(Slots(sys.argv[1], "stream", 3), "web").each(sources(3), job, save)
except Exception as error:
    print(type(error).__name__)
"""


def test_a_signal_that_waits_for_a_stopped_worker_is_heard_when_it_goes_on(tmp_path: Path) -> None:
    """Linux may hand it to the thread of a stream then."""
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", STOPPED_WORKER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout
            assert worker.stdout.readline() == "begun\n"
            wait_until(lambda: len(os.listdir(f"/proc/{worker.pid}/task")) == 4, 20, "its streams have begun")
            worker.send_signal(signal.SIGSTOP)
            wait_until(lambda: " T " in Path(f"/proc/{worker.pid}/stat").read_text(), 20, "it is stopped")
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
                worker.send_signal(number)
            assert worker.stdout.read() == "Interrupted\n"


def test_one_that_waits_gives_a_sign_of_life_only_if_no_other_image_is_streamed(tmp_path: Path) -> None:
    """Or the pool would never notice that the other one hangs."""
    recorder = Recorder()
    job, polls, saved = JobOnPaper(recorder), list[None](), list[SnapshotSource]()
    job.check_stop = lambda: polls.append(None)  # type: ignore[method-assign]

    def save(source: SnapshotSource, _job: Job) -> None:
        before = len(polls)
        if not saved:  # while the other one waits
            wait_until(lambda: len(polls) > before + 3, 20, "it has asked for its slot")
        saved.append(source)

    with Slots(str(tmp_path), "stream", 2).whenever_free(lambda: None):
        streams(tmp_path, 2).each(sources(2), job, save)
    assert recorder.told(Level.DEBUG) == []


def test_a_request_to_stop_comes_before_the_error_that_follows_from_it(tmp_path: Path) -> None:
    job = JobOnPaper()

    def save(_source: SnapshotSource, _job: Job) -> None:
        job.stop.request(Interrupted("interrupted", 15))
        raise BackupError("restic got the signal too")

    with raises("interrupted", Interrupted):
        streams(tmp_path, 2).each(sources(2), job, save)


def test_without_a_thread_for_each_image_none_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    started: list[str] = []

    def second_fails(thread: threading.Thread) -> None:
        started.append(thread.name)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", second_fails)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        streams(tmp_path, 2).each(sources(2), JobOnPaper(), lambda _, job: until_stopped(job))


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Path]:
    """A directory of whose slots another worker has the only one."""
    with Slots(str(tmp_path), "stream", 1).one():
        yield tmp_path


def in_background(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_a_domain_that_waits_for_its_turn_gives_signs_of_life(
    taken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING_INTERVAL", 0.05)
    monkeypatch.setattr(module, "POLL", 0.01)
    recorder = Recorder()
    job = JobOnPaper(recorder)
    seen: list[BaseException] = []

    def attempt() -> None:
        try:
            streams(taken, 1).each(sources(2), job, lambda *_: None)
        except BackupError as error:
            seen.append(error)

    thread = in_background(attempt)
    wait_until(lambda: len(recorder.told(Level.DEBUG)) > 2, 10, "signs of life")
    job.stop.request(Interrupted("interrupted", 15))
    thread.join(10)
    assert [str(error) for error in seen] == ["interrupted"]
    assert recorder.told(Level.DEBUG)[0] == "vd0 waits until fewer than 1 images are streamed (STREAMS)"


def test_it_begins_when_the_other_worker_is_done(
    taken: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    done: list[str] = []
    call = streams(taken, 2)  # one more slot than are taken: one image after the other
    assert (
        call.each(sources(3), JobOnPaper(), lambda source, _: done.append(source.disk.target)) == [None] * 3
    )
    assert sorted(done) == ["vd0", "vd1", "vd2"]
