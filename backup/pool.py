"""The worker processes: a domain each, WORKERS at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Callable

from .errors import reason
from .job import JobOrder
from .model import JobResult, Level, Output, Reporter, Status
from .settings import Settings
from .stop import StopRequest
from .worker import Message, Progress, work

STOP_POLL = 0.5  # seconds between two looks at whether the run has to stop

# librados and libvirt have threads of their own, which do not survive a fork
_spawn = multiprocessing.get_context("spawn")


@dataclass
class Worker:
    """A process at work, and what it has told of its end."""

    order: JobOrder
    process: SpawnProcess
    result: JobResult | None = None


@dataclass
class Pool:
    """Takes jobs through worker processes. `worker_died` is told of jobs whose process was killed."""

    settings: Settings
    output: Output
    reporter: Reporter
    stop: StopRequest
    worker_died: Callable[[JobOrder], None]
    _results: list[JobResult] = field(default_factory=list)
    _active: dict[Connection, Worker] = field(default_factory=dict)

    def run(self, orders: Sequence[JobOrder]) -> Sequence[JobResult]:
        """Do the jobs in this order; when stopped, wait for the workers to clean up."""
        waiting = deque(orders)
        try:
            self._run(waiting)
        finally:  # by now none is left, but after a bug of ours
            for worker in self._active.values():
                worker.process.terminate()
                worker.process.join()
        interrupted = "interrupted before it began"
        return self._results + [JobResult(one.name, one.uuid, Status.SKIPPED, interrupted) for one in waiting]

    def _run(self, waiting: deque[JobOrder]) -> None:
        told = False
        while self._active or (waiting and not self.stop.requested):
            while waiting and len(self._active) < self.settings.workers and not self.stop.requested:
                self._start(waiting.popleft())
            if self.stop.requested and not told:
                told = True
                self._tell_to_stop()
            if self.stop.insisted:
                self._kill()
            for pipe in wait(list(self._active), STOP_POLL):
                assert isinstance(pipe, Connection)
                self._receive(pipe)

    def _start(self, order: JobOrder) -> None:
        ours, theirs = _spawn.Pipe(duplex=False)
        process = _spawn.Process(
            target=work,
            args=(order, self.settings, self.output, theirs, os.getpid()),
            name=order.name,
        )
        try:
            with _signals_blocked():
                process.start()
        except OSError as error:  # out of memory or processes: this domain's failure alone
            ours.close()
            message = f"cannot start its worker process: {reason(error)}"
            self._done(JobResult(order.name, order.uuid, Status.FAILED, message))
        else:
            self._active[ours] = Worker(order, process)
        finally:
            theirs.close()

    def _tell_to_stop(self) -> None:
        text = "stopping: waiting for the workers to clean up; a second signal kills them"
        self.reporter.message(Level.WARNING, "", text)
        for worker in self._active.values():
            worker.process.terminate()

    def _kill(self) -> None:
        for worker in self._active.values():
            worker.process.kill()

    def _receive(self, pipe: Connection) -> None:
        worker = self._active[pipe]
        try:
            item = pipe.recv()
        except (EOFError, OSError):  # OSError: killed in the middle of a message
            self._ended(self._active.pop(pipe))
            pipe.close()
            return
        if isinstance(item, Message):
            self.reporter.message(item.level, item.domain, item.text)
        elif isinstance(item, Progress):
            self.reporter.progress(item.domain, item.target, item.done, item.size)
        else:
            worker.result = item

    def _ended(self, worker: Worker) -> None:
        """Note the job's result. A worker that died costs its own domain and nothing else."""
        worker.process.join()
        code = worker.process.exitcode or 0
        order, result = worker.order, worker.result
        if result is None:
            how = (
                f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            )
            hint = "out of memory? see the journal of the kernel" if code == -signal.SIGKILL else ""
            result = JobResult(order.name, order.uuid, Status.FAILED, f"its worker process {how}", hint)
            self.worker_died(order)
        self._done(result)

    def _done(self, result: JobResult) -> None:
        self._results.append(result)
        if result.status is Status.FAILED:
            hint = f" (hint: {result.hint})" if result.hint else ""
            self.reporter.message(Level.ERROR, result.name, f"failed: {result.reason}{hint}")
        elif result.status is Status.SKIPPED:
            self.reporter.message(Level.WARNING, result.name, f"skipped: {result.reason}")


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Have a process that is started in the block begin with these signals blocked.

    It unblocks them when its handlers stand; before, Ctrl-C would end it with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
