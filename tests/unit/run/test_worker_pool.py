"""backup/run/worker_pool.py: a worker process per domain, and what its death costs."""

from __future__ import annotations

import _thread
import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Callable

import pytest

from backup.errors import Interrupted
from backup.job.job_order import JobOrder
from backup.job_result import JobResult, Phase, Status, Timeline
from backup.model import Consistency, Level
from backup.run import active_worker, worker_pool
from backup.run.worker_pool import Pool
from backup.system import process_end
from backup.system.child_records import records_in
from backup.system.concurrency_limit import Slots
from backup.system.process_group import ProcessId, is_running
from backup.system.stop_request import StopRequest

from ..jobs_on_paper import NoOutput, stop_at_once, work_on_paper
from ..recorder import Recorder
from ..samples import RUN, UUID, held_point, settings
from ..waiting import wait_until


@pytest.fixture(autouse=True)
def paper_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(worker_pool, "work", work_on_paper)
    monkeypatch.setattr(worker_pool, "STOP_POLL", 0.01)
    yield
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
        process.join()
    assert left == []


@dataclass
class StopsAt(Recorder):
    """Requests the stop as soon as two workers have reported that they are waiting."""

    stop: StopRequest = field(default_factory=StopRequest)

    def message(self, level: Level, domain: str, text: str) -> None:
        super().message(level, domain, text)
        if text == "waiting" and self.told(Level.INFO).count(text) == 2:
            self.stop.request(Interrupted("interrupted", 15))


@dataclass
class Done:
    """The outcome of a pool."""

    results: dict[str, JobResult] = field(default_factory=dict)
    recorder: StopsAt = field(default_factory=StopsAt)
    reported_dead: list[str] = field(default_factory=list)


def orders(*names: str) -> Sequence[JobOrder]:
    return [JobOrder(RUN, name, UUID) for name in names]


def done(*names: str, workers: int = 4, warm: int = 0) -> Done:
    done = Done()

    def worker_died(order: JobOrder, _pass_on_stop: object) -> str:
        done.reported_dead.append(order.name)
        return ""

    end, lifeline = multiprocessing.Pipe(duplex=False)
    recorder = done.recorder
    made = Pool(settings(workers=workers), NoOutput(), recorder, recorder.stop, lifeline, worker_died)
    with end, lifeline, made as jobs:
        jobs.warm_up(warm)
        done.results = {result.name: result for result in jobs.run(orders(*names))}
    return done


def test_a_worker_that_dies_at_whatever_moment_costs_its_own_job_and_nothing_else() -> None:
    all_done = done("killed", "killed within a message", "bug", "failed", "good")
    assert {name: (one.status, one.reason) for name, one in all_done.results.items()} == {
        "killed": (Status.FAILED, "its worker process was killed by SIGKILL"),
        "killed within a message": (Status.FAILED, "its worker process was killed by SIGKILL"),
        "bug": (Status.FAILED, "its worker process ended with exit code 7"),
        "failed": (Status.FAILED, "no snapshots"),
        "good": (Status.SAVED, ""),
    }
    assert "out of memory?" in all_done.results["killed"].hint
    assert sorted(all_done.reported_dead) == ["bug", "killed", "killed within a message"]
    assert (Level.INFO, "good", "nearly there") in all_done.recorder.messages
    assert (Level.ERROR, "failed", "failed: no snapshots (hint: look)") in all_done.recorder.messages
    assert all_done.recorder.progressed == [("good", "vda", 1, 2)]


def test_a_job_whose_worker_crashed_in_a_library_is_retried() -> None:
    results = done("crashed while streaming", "killed while streaming").results
    crashed, killed = (results[f"{how} while streaming"] for how in ("crashed", "killed"))
    assert crashed.reason == "its worker process was killed by SIGABRT"
    assert "a library crashed" in crashed.hint
    assert [crashed.transient, killed.transient] == [True, False]


def test_a_job_of_which_nothing_has_begun_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one whose worker was killed for lack of memory while it waited for its order."""
    assert done("killed").results["killed"].transient

    def refused(_: SpawnProcess) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(SpawnProcess, "start", refused)
    result = done("good", warm=1).results["good"]
    assert (result.status, result.transient) == (Status.FAILED, True)
    assert result.reason == "cannot start its worker process: resource temporarily unavailable"


def test_a_job_that_cannot_be_handed_over_at_the_limit_of_processes_is_retried_and_costs_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, refusals = _thread.start_new_thread, iter([True])

    def refused_once(*arguments: Any) -> int:
        if next(refusals, False):
            raise RuntimeError("can't start new thread")
        return start(*arguments)

    monkeypatch.setattr(_thread, "start_new_thread", refused_once)
    results = done("good", "good too", workers=1).results
    assert (results["good"].status, results["good"].transient) == (Status.FAILED, True)
    assert results["good"].reason == "cannot start its worker process: can't start new thread"
    assert results["good too"].status is Status.SAVED


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_a_worker_that_dies_once_its_restore_point_is_complete_has_saved_it(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(worker_pool, "HUNG_GRACE", 0.3)
    (result,) = done(f"{how} while tidying up").results.values()
    hung = "no sign of life for 0 s while tidying up; " if how == "hangs" else ""
    assert result.reason == f"saved, but {hung}its worker process was killed by SIGKILL"
    assert result.status is Status.FAILED
    assert (result.consistency, result.frozen_seconds) == (Consistency.OFFLINE, 2), "as it was saved"
    assert result.timeline
    assert not result.transient
    assert not result.withdraw


def test_each_job_has_a_timeline_and_a_lane_of_its_own() -> None:
    results = done("good", "too", "slow", "killed", workers=2).results
    lanes: dict[int, list[Timeline]] = {1: [], 2: []}
    for result in results.values():
        assert result.timeline
        lanes[result.timeline.lane].append(result.timeline)
    for lane in lanes.values():
        lane.sort(key=lambda one: one.started)
        assert all(one.finished <= other.started for one, other in pairwise(lane))
    assert results["slow"].timeline
    ((phase, began),) = results["slow"].timeline.phases
    assert phase is Phase.STREAM
    assert results["slow"].timeline.started < began < results["slow"].timeline.finished


def pairwise(lane: Sequence[Timeline]) -> Iterator[tuple[Timeline, Timeline]]:
    return zip(lane, lane[1:])


def test_on_a_request_to_stop_workers_clean_up_and_no_job_begins() -> None:
    all_done = done("waits", "waits too", "never begun", workers=2)
    assert {name: (one.status, one.reason) for name, one in all_done.results.items()} == {
        "waits": (Status.FAILED, "interrupted"),
        "waits too": (Status.FAILED, "interrupted"),
        "never begun": (Status.SKIPPED, "interrupted before it began"),
    }
    assert all_done.recorder.told(Level.WARNING) == [
        "stopping: waiting for the workers to clean up; a second signal kills them"
    ]
    assert all_done.reported_dead == []


def test_workers_hear_of_a_request_to_stop_while_hooks_of_a_dead_one_run() -> None:
    """The first signal is not passed on by the kernel: workers are no members of our group."""
    recorder, stopped = StopsAt(), list[bool]()
    end, lifeline = multiprocessing.Pipe(duplex=False)

    def worker_died(_: JobOrder, pass_on_stop: Callable[[], None]) -> str:
        (waits,) = [worker for worker in jobs._active.values() if worker.order.name == "waits"]
        recorder.stop.request(Interrupted("interrupted", 15))
        for _number in range(2):
            pass_on_stop()
        wait_until(lambda: waits.process.exitcode is not None, 10, "it has heard of it")
        stopped.append(True)
        return ""

    made = Pool(settings(workers=2), NoOutput(), recorder, recorder.stop, lifeline, worker_died)
    with end, lifeline, made as jobs:
        results = {result.name: result.reason for result in jobs.run(orders("waits", "killed"))}
    assert (stopped, results["waits"]) == ([True], "interrupted")
    assert len(recorder.told(Level.WARNING)) == 1


@pytest.mark.parametrize("warm", [1, 2, 9])
def test_workers_that_were_started_ahead_do_jobs_like_others_and_none_is_left(warm: int) -> None:
    all_done = done("killed", "good", "good too", workers=2, warm=warm)
    assert {name: one.status for name, one in all_done.results.items()} == {
        "killed": Status.FAILED,
        "good": Status.SAVED,
        "good too": Status.SAVED,
    }
    assert all_done.reported_dead == ["killed"]
    assert done(workers=2, warm=warm).results == {}


def test_a_spare_worker_that_was_killed_costs_one_job_and_nothing_else() -> None:
    recorder = StopsAt()
    end, lifeline = multiprocessing.Pipe(duplex=False)
    made = Pool(settings(workers=2), NoOutput(), recorder, recorder.stop, lifeline, lambda *_: "")
    with end, lifeline, made as jobs:
        jobs.warm_up(1)
        (waiting,) = multiprocessing.active_children()
        waiting.kill()
        waiting.join()
        results = {result.name: result.reason for result in jobs.run(orders("good", "good too"))}
    assert results == {"good": "its worker process was killed by SIGKILL", "good too": ""}


@pytest.mark.parametrize("size", [1, 20_000], ids=["fits into the pipe", "fits into no pipe"])
def test_a_spare_worker_that_was_stopped_is_replaced_and_delays_no_job(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_worker, "START_LIMIT", 6.0)
    recorder = StopsAt()
    end, lifeline = multiprocessing.Pipe(duplex=False)
    large = JobOrder(RUN, "good", UUID, known=[held_point(str(number)) for number in range(size)])
    made = Pool(settings(workers=2), NoOutput(), recorder, recorder.stop, lifeline, lambda *_: "")
    with end, lifeline, made as jobs:
        jobs.warm_up(1)
        (waiting,) = multiprocessing.active_children()
        assert waiting.pid
        os.kill(waiting.pid, signal.SIGSTOP)
        late = threading.Timer(30, os.kill, [waiting.pid, signal.SIGKILL])  # or the test would hang
        late.start()
        results = {result.name: result for result in jobs.run([large, *orders("too")])}
        late.cancel()
    assert {name: one.reason for name, one in results.items()} == {"good": "", "too": ""}
    assert [*results] == ["too", "good"], "it was not delayed"
    warning = "its worker process did not begin within 6 s: starting another worker"
    assert recorder.told(Level.WARNING) == [warning]


def test_a_job_whose_second_worker_does_not_begin_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active_worker, "START_LIMIT", 1.0)
    monkeypatch.setattr(worker_pool, "work", stop_at_once)
    all_done = done("good")
    result = all_done.results["good"]
    assert result.status is Status.FAILED
    assert result.reason.startswith("its worker process did not begin within 1 s; ")


def test_without_jobs_the_pool_ends_at_once() -> None:
    assert done().results == {}


def test_a_worker_without_a_sign_of_life_is_asked_to_stop_and_then_killed_and_its_job_retried(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker_pool, "HUNG_GRACE", 0.3)
    all_done = done("hangs", "good")
    assert all_done.results["hangs"].status is Status.FAILED
    assert all_done.results["hangs"].reason == (
        "no sign of life for 0 s while streaming; its worker process was killed by SIGKILL"
    )
    assert all_done.results["hangs"].transient
    assert all_done.reported_dead == ["hangs"]
    assert all_done.results["good"].status is Status.SAVED
    assert "jobs_on_paper.py" in capfd.readouterr().err, "it has printed where it hung"


@pytest.mark.parametrize(("how", "status"), [("saves", Status.SAVED), ("fails", Status.FAILED)])
def test_a_worker_that_does_not_end_after_its_result_is_killed_which_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, how: str, status: Status
) -> None:
    monkeypatch.setattr(worker_pool, "END_LIMIT", 0.5)
    all_done = done(f"{how} and does not end", workers=1)
    (result,) = all_done.results.values()
    assert (result.status, result.reason) == (status, "")
    assert all_done.reported_dead == []
    assert not [text for text in all_done.recorder.told(Level.ERROR) if "no sign of life" in text]


@pytest.fixture
def unkillable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have SIGKILL end no process at once, as in an uninterruptible sleep, or in a frozen cgroup."""
    monkeypatch.setattr(SpawnProcess, "kill", lambda _: None)
    monkeypatch.setattr(worker_pool, "END_LIMIT", 0.3)
    monkeypatch.setattr(process_end, "_left", [])
    yield
    for process in multiprocessing.active_children():
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()


@pytest.mark.usefixtures("unkillable")
def test_a_worker_that_does_not_end_although_it_was_killed_costs_its_own_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_pool, "HUNG_GRACE", 0.3)
    all_done = done("hangs", "good")
    hangs = all_done.results["hangs"]
    assert hangs.status is Status.FAILED
    assert hangs.reason == (
        "no sign of life for 0 s while streaming; its worker process was killed, but does not end"
    )
    assert hangs.timeline
    assert not hangs.transient, "another would hang as well"
    assert all_done.reported_dead == ["hangs"], "its guest is thawed"
    assert all_done.results["good"].status is Status.SAVED
    assert process_end.any_left()


@pytest.mark.usefixtures("unkillable")
def test_the_programs_of_a_worker_that_does_not_end_are_ended_and_its_slot_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The watchdog waits for the worker's end, and this process's end cuts its own threads."""
    monkeypatch.setattr(worker_pool, "HUNG_GRACE", 0.3)
    running: list[bool] = []

    def worker_died(*_: object) -> str:
        (one,) = records_in(str(tmp_path)).read()
        running.append(bool(one.group.members()))
        programs.append(one.leader)
        return ""

    programs: list[ProcessId] = []
    end, lifeline = multiprocessing.Pipe(duplex=False)
    chosen, recorder = settings(runtime_dir=str(tmp_path)), StopsAt()
    with end, lifeline, Pool(chosen, NoOutput(), recorder, recorder.stop, lifeline, worker_died) as jobs:
        jobs.run(orders("hangs with a program"))
    assert running == [True], "the guest is thawed first"
    assert not is_running(programs[0])
    assert list(records_in(str(tmp_path)).read()) == []
    assert multiprocessing.active_children(), "the worker lives"
    with ExitStack() as stack:
        assert Slots(str(tmp_path), "stream", 1)._any_taken(stack)


@pytest.mark.usefixtures("unkillable")
def test_after_a_second_signal_no_worker_is_waited_for_that_does_not_end() -> None:
    recorder = StopsAt()
    end, lifeline = multiprocessing.Pipe(duplex=False)
    made = Pool(settings(), NoOutput(), recorder, recorder.stop, lifeline, lambda *_: "")
    for seconds in (1.0, 1.1):
        threading.Timer(seconds, recorder.stop._handle, [signal.SIGTERM, None]).start()
    with end, lifeline, made as jobs:
        (result,) = jobs.run(orders("hangs"))
    assert result.reason.endswith("its worker process was killed, but does not end")
    assert "state D" in result.hint
    assert "cleanup" in result.hint


@pytest.mark.usefixtures("unkillable")
def test_a_spare_worker_that_is_stopped_does_not_keep_the_run_from_ending() -> None:
    recorder = StopsAt()
    end, lifeline = multiprocessing.Pipe(duplex=False)
    made = Pool(settings(), NoOutput(), recorder, recorder.stop, lifeline, lambda *_: "")
    with end, lifeline, made as jobs:
        jobs.warm_up(1)
        (waiting,) = multiprocessing.active_children()
        assert waiting.pid
        os.kill(waiting.pid, signal.SIGSTOP)
    assert process_end.any_left()


def test_a_hung_worker_that_can_clean_up_is_not_killed_and_its_job_is_retried() -> None:
    all_done = done("hangs and stops")
    result = all_done.results["hangs and stops"]
    assert result.reason == "no sign of life for 0 s while preparing; interrupted"
    assert result.transient
    assert all_done.reported_dead == []


def test_progress_is_a_sign_of_life() -> None:
    assert done("slow").results["slow"].status is Status.SAVED


def test_a_worker_that_is_silent_for_long_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active_worker, "SILENCE", 1.0)
    recorder = done("silent", "silent hooks").recorder
    text = "no sign of life for 1 s while streaming: its worker may hang, and is ended after 60 s"
    assert [one for one in recorder.messages if one[0] is Level.WARNING] == [(Level.WARNING, "silent", text)]


def test_a_main_process_that_was_stopped_takes_no_worker_for_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    stops = iter([4.3])  # once, for longer than the worker may be silent

    monkeypatch.setattr(StopsAt, "progress", lambda *_: time.sleep(next(stops, 0)))
    all_done = done("slow")
    assert all_done.results["slow"].status is Status.SAVED
    assert all_done.recorder.told(Level.ERROR) == []


def test_jobs_are_reported_before_they_begin_and_as_they_end() -> None:
    recorder = done("failed", "good").recorder
    assert recorder.plan == [(UUID, "failed", 0), (UUID, "good", 0)]
    assert sorted(recorder.ends) == [(UUID, False), (UUID, True)]
