"""Jobs on paper: the job that an output gets in tests, and the worker processes in the tests of the pool."""

from __future__ import annotations

import faulthandler
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from multiprocessing.connection import Connection
from typing import Callable, Optional

from backup.errors import BackupError
from backup.job.job_order import JobOrder
from backup.job_result import JobResult, Phase, Status
from backup.model import Consistency, Level
from backup.protocols import Job, OpenedPoint, Output, Reporter, SnapshotSource, Source
from backup.run.worker import SHOW_STACKS, PipeReporter, Progress, Saved
from backup.settings import Settings
from backup.stored import Packed, PointId, RestorePoint, SavedDomain, SavedImage, StoredPoint
from backup.system.child_records import ChildRecord, records_in
from backup.system.concurrency_limit import Slots
from backup.system.stop_request import StopRequest

from .recorder import Recorder
from .waiting import wait_until

DEATHS = {
    "killed": signal.SIGKILL,
    "killed while streaming": signal.SIGKILL,
    "crashed while streaming": signal.SIGABRT,
}


@dataclass
class JobOnPaper:
    """Satisfies protocols.Job."""

    reporter: Reporter = field(default_factory=Recorder)
    stop: StopRequest = field(default_factory=StopRequest)

    released: list[SnapshotSource] = field(default_factory=list)
    verifies: bool = False

    def check_stop(self) -> None:
        self.stop.check()

    def require_lock(self) -> None:
        self.stop.check_leased()

    def image_saved(self, source: SnapshotSource, image: SavedImage) -> None:
        self.released.append(source)


class NoOutput:
    """Satisfies protocols.Output for jobs that never ask it."""

    keeps_base_snapshots = False
    prunes = False

    def configuration_errors(self) -> Sequence[BackupError]:
        return ()

    def problems(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[BackupError]:
        return ()

    def advice(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[str]:
        return ()

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        raise AssertionError

    def base(
        self,
        uuid: str,
        runs: Collection[str],
        known: Sequence[StoredPoint],
        check_stop: Callable[[], None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> Optional[SavedDomain]:
        raise AssertionError

    def last_saved(self, uuid: str, check_stop: Callable[[], None] = lambda: None) -> Optional[datetime]:
        raise AssertionError

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        raise AssertionError

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        raise AssertionError

    def image(self, image: SavedImage, check_stop: Callable[[], None]) -> AbstractContextManager[Source]:
        raise AssertionError

    def opened(
        self, point: StoredPoint, check_stop: Callable[[], None]
    ) -> AbstractContextManager[OpenedPoint]:
        raise AssertionError

    def holds(self, path: str, check_stop: Callable[[], None] = lambda: None) -> bool:
        raise AssertionError

    def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        raise AssertionError

    def discard(
        self,
        points: Collection[PointId],
        wait_if_busy: bool,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        raise AssertionError

    def withdraw(self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None) -> None:
        raise AssertionError


def work_on_paper(
    settings: Settings,
    _output: Output,
    pipe: Connection,
    _main_process: int,
    lifeline: Connection,
) -> None:
    """Do what the job's name demands; stands in for worker.work."""
    faulthandler.register(SHOW_STACKS, 2)
    assert lifeline.writable
    assert not lifeline.closed
    with suppress(EOFError):
        order = pipe.recv()
        if order.name == "hangs with a program":
            _start_recorded(settings.runtime_dir)
            slot = Slots(settings.runtime_dir, "stream", 1).one()  # as long as this function goes on
            slot.__enter__()
        _do(order, pipe)


def _start_recorded(runtime_dir: str) -> None:
    """Start a program as the outputs do: leading a group, and recorded."""
    program = subprocess.Popen(["sleep", "600"], preexec_fn=os.setpgrp)
    records_in(runtime_dir).write(ChildRecord.for_child(program.pid, "", 0.0))


def stop_at_once(*_: object) -> None:
    """Stand in for a worker that is stopped before it has taken its order."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _do(order: JobOrder, pipe: Connection) -> None:
    reporter = PipeReporter(pipe)
    saved = JobResult(order.name, order.uuid, Status.SAVED)
    _die(order, pipe)
    if order.name.endswith("while tidying up"):
        _tidies_up(order, reporter, saved)
    elif order.name in ("hangs", "hangs with a program"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in a call of librbd that never returns
        reporter.phase(order.name, Phase.STREAM, 0.2)
        _wait_for_ever()
    elif order.name.startswith("silent"):
        reporter.phase(order.name, Phase.HOOKS if "hooks" in order.name else Phase.STREAM, 60)
        time.sleep(1.5)
        reporter.message(Level.DEBUG, order.name, "goes on")
        time.sleep(0.5)
        reporter.send(saved)
    elif order.name == "hangs and stops":
        stop = StopRequest()
        stop.on_signals(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        reporter.phase(order.name, Phase.PREPARE, 0.2)
        wait_until(lambda: stop.requested, 10, "the request to stop")
        reporter.send(JobResult(order.name, order.uuid, Status.FAILED, "interrupted"))
    elif order.name.endswith("and does not end"):
        reporter.phase(order.name, Phase.TIDY, 5)
        status = Status.FAILED if order.name.startswith("fails") else Status.SAVED
        reporter.send(replace(saved, status=status))
        _wait_for_ever()
    elif order.name == "slow":
        reporter.phase(order.name, Phase.STREAM, 4)
        for done in range(20):  # longer than the limit, but not without a sign of life
            time.sleep(0.25)
            reporter.send(Progress(order.name, "vda", done, 20))
        reporter.send(saved)
    elif order.name == "failed":
        reporter.send(JobResult(order.name, order.uuid, Status.FAILED, "no snapshots", "look"))
    elif order.name.startswith("waits"):
        stop = StopRequest()
        stop.on_signals(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        reporter.message(Level.INFO, order.name, "waiting")
        wait_until(lambda: stop.requested, 10, "the request to stop")
        reporter.send(JobResult(order.name, order.uuid, Status.FAILED, "interrupted"))
    else:
        reporter.message(Level.INFO, order.name, "nearly there")
        reporter.progress(order.name, "vda", 1, 2)
        reporter.send(saved)


def _wait_for_ever() -> None:
    while True:
        signal.pause()


def _die(order: JobOrder, pipe: Connection) -> None:
    """End this process, if that is what the job's name demands."""
    if order.name == "bug":
        sys.exit(7)
    elif order.name == "killed within a message":
        os.write(pipe.fileno(), struct.pack("!i", 1000) + b"not a thousand bytes")
    elif order.name not in DEATHS:
        return
    elif order.name.endswith("while streaming"):
        PipeReporter(pipe).phase(order.name, Phase.STREAM, 60)
    os.kill(os.getpid(), DEATHS.get(order.name, signal.SIGKILL))


def _tidies_up(order: JobOrder, reporter: PipeReporter, saved: JobResult) -> None:
    """Have saved the domain, and never say that all is done."""
    reporter.phase(order.name, Phase.STREAM, 9)
    reporter.send(Saved(replace(saved, consistency=Consistency.OFFLINE, frozen_seconds=2)))
    reporter.phase(order.name, Phase.TIDY, 60 if order.name.startswith("killed") else 0.2)
    if order.name.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in a call of librbd that never returns
    _wait_for_ever()
