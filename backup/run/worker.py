"""The worker process: one domain's job, which reports to the main process."""

from __future__ import annotations

import faulthandler
import math
import os
import select
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Callable, Union

from ..job.domain_job import DomainJob
from ..job.job_order import JobOrder
from ..job_result import JobResult, Phase
from ..model import Level
from ..protocols import Output
from ..settings import Settings
from ..system.launcher import signal_when_parent_dies
from ..system.process_title import set_title
from ..system.progress_interval import ProgressInterval
from ..system.started_program import commands_logged
from ..system.stop_request import StopRequest

SHOW_STACKS = signal.SIGUSR2  # has a worker print where each of its threads is


@dataclass(frozen=True)
class Message:
    """A message of a worker for the log."""

    level: Level
    domain: str
    text: str


@dataclass(frozen=True)
class Progress:
    """How many of an image's bytes a worker has sent."""

    domain: str
    target: str
    done: int
    size: int


@dataclass(frozen=True)
class PhaseBegun:
    """A worker entered a phase; it hangs if it reports nothing more for `limit` seconds."""

    domain: str
    phase: Phase
    limit: float


@dataclass(frozen=True)
class Saved:
    """The restore point is complete. The result, should the worker send no other: it only tidies up now."""

    result: JobResult


FromWorker = Union[Message, Progress, PhaseBegun, Saved, JobResult]


class PipeReporter:
    """Sends what the job reports to the main process. Satisfies protocols.Reporter.

    Threads may share it. Progress and debug messages for which the pipe has no room are dropped: a main
    process that was stopped does not read, and the stream must not wait for it. `set_title` gets the
    process's title.
    """

    def __init__(self, pipe: Connection, set_title: Callable[[str], None] = lambda text: None) -> None:
        self._pipe = pipe
        self._set_title = set_title
        self._phase = Phase.PREPARE
        self._under_way: dict[str, None] = {}  # targets, in the order in which they began
        self._intervals: dict[str, ProgressInterval] = {}  # by target
        self._sending = threading.Lock()  # threads of a job report too
        self._room = select.poll()
        self._room.register(pipe, select.POLLOUT)

    def message(self, level: Level, domain: str, text: str) -> None:
        if level is Level.DEBUG:
            self._send_if_room(Message(level, domain, text))
        else:
            self.send(Message(level, domain, text))

    def phase(self, domain: str, phase: Phase, limit: float = math.inf) -> None:
        self._phase, self._under_way = phase, {}
        self._set_title(f"{domain}: {phase.value}")
        self.send(PhaseBegun(domain, phase, limit))

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        if not self._intervals.setdefault(target, ProgressInterval()).due(done, size):
            return
        self._set_under_way(domain, target, done < size)
        self._send_if_room(Progress(domain, target, done, size))

    def _set_under_way(self, domain: str, target: str, unfinished: bool) -> None:
        """Name the images that are under way in the title."""
        before = [*self._under_way]
        if unfinished and target:
            self._under_way.setdefault(target)
        else:
            self._under_way.pop(target, None)
        if (targets := [*self._under_way]) != before:
            self._set_title(" ".join((f"{domain}: {self._phase.value}", *targets)))

    def _send_if_room(self, item: FromWorker) -> None:
        if self._sending.acquire(blocking=False):  # otherwise another thread is waiting for room
            try:
                if self._room.poll(0):
                    self._send(item)
            finally:
                self._sending.release()

    def send(self, item: FromWorker) -> None:
        with self._sending:
            self._send(item)

    def _send(self, item: FromWorker) -> None:
        with suppress(BrokenPipeError):  # the main process was killed: the job goes on, to clean up
            self._pipe.send(item)


def work(
    settings: Settings,
    output: Output,
    pipe: Connection,
    main_process: int,
    _lifeline: Connection,
) -> None:
    """Wait for an order, and do the job. The body of a worker process.

    Without an order it ends when the other end of the pipe is closed. `main_process` is the pid of the one
    that it reports to. The lifeline is open as long as this process lives: the watchdog waits for its end.
    """
    # A group of its own: a terminal's Ctrl-C must not reach restic and us; the main process gets it and asks
    # us to stop.
    os.setpgid(0, 0)
    faulthandler.enable(2)  # or a crash of librbd would leave no trace of where it was
    faulthandler.register(SHOW_STACKS, 2)  # nor would a hang
    stop = StopRequest()
    stop.on_signals(signal.SIGTERM)
    # A stopped worker gets SIGHUP and SIGCONT from the kernel when its main process dies: it has to clean up.
    # Not ignored, as restic and hooks would inherit that.
    signal.signal(signal.SIGHUP, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    signal_when_parent_dies(signal.SIGTERM, main_process)
    set_title("worker")
    try:
        order: JobOrder = pipe.recv()
    except EOFError:
        return
    reporter = PipeReporter(pipe, set_title)
    with commands_logged(partial(reporter.message, Level.DEBUG, order.name)):
        job = DomainJob(order, settings, output, reporter, stop, lambda result: reporter.send(Saved(result)))
        reporter.send(job.run())
