"""What worker processes do in the tests of the pool, by their job's name."""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

from backup.errors import BackupError
from backup.job import JobOrder
from backup.model import Job, JobResult, Level, Output, RestorePoint, SavedImage, SnapshotSource, Status
from backup.settings import Settings
from backup.stop import StopRequest
from backup.worker import PipeReporter

from .waiting import wait_until


class NoOutput:
    """Satisfies model.Output for jobs that never ask it."""

    def configuration_errors(self) -> Sequence[BackupError]:
        return ()

    def problems(self) -> Sequence[BackupError]:
        return ()

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        raise AssertionError

    def discard_incomplete(self, run: str, patient: bool) -> None:
        raise AssertionError


def work_on_paper(
    order: JobOrder, _settings: Settings, _output: Output, pipe: Connection, _main_process: int
) -> None:
    """Do what the job's name says; stands in for worker.work."""
    reporter = PipeReporter(pipe)
    saved = JobResult(order.name, order.uuid, Status.SAVED)
    if order.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order.name == "killed within a message":
        os.write(pipe.fileno(), struct.pack("!i", 1000) + b"not a thousand bytes")
        os.kill(os.getpid(), signal.SIGKILL)
    elif order.name == "bug":
        sys.exit(7)
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
