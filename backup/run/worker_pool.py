"""The worker processes: a domain each, WORKERS at a time."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Callable

from ..command import COMMAND
from ..errors import reason
from ..job.job_order import JobOrder
from ..job_result import NOT_BEGUN, JobResult, Status
from ..model import Level
from ..protocols import Output, RunReporter
from ..settings import Settings
from ..system.child_records import end_programs_of
from ..system.concurrency_limit import free_slots_of
from ..system.process import SPAWN, spawning
from ..system.process_end import ended
from ..system.stop_request import StopRequest
from ..system.time_limit import NoThread, begun
from .active_worker import Worker
from .worker import Message, PhaseBegun, Progress, Saved, work

STOP_POLL = 0.5  # seconds between two checks whether the run has to stop
HUNG_GRACE = 60.0  # seconds for a worker that hangs to clean up, before it is killed
STACKS_LIMIT = 2.0  # seconds for it to print where its threads are, before that
END_LIMIT = 15.0  # seconds for a worker to end that has nothing more to do, or was killed
# How a process ends by a defect of a library in it: at a rare moment, so that a retry may succeed.
CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}

STUCK_HINT = (
    "is it in an uninterruptible sleep (state D in ps), or a frozen cgroup? What it left is removed by"
    f" the next run, or {COMMAND} cleanup"
)


@dataclass
class Pool:
    """Takes jobs through worker processes.

    `worker_died` is called for each job whose process was killed, and returns why, "" if unknown. What it
    gets with the job it has to call meanwhile: that passes a request to stop on to the other workers.

    Each worker keeps `lifeline` open, for the watchdog. After the pool's block no worker is left, except for
    one that not even SIGKILL ends (see process_end), and none of its programs.
    """

    settings: Settings
    output: Output
    reporter: RunReporter
    stop: StopRequest
    lifeline: Connection
    worker_died: Callable[[JobOrder, Callable[[], None]], str]
    _results: list[JobResult] = field(default_factory=list)
    _active: dict[Connection, Worker] = field(default_factory=dict)
    _waiting: deque[JobOrder] = field(default_factory=deque)
    _replaced: set[str] = field(default_factory=set)  # uuids of jobs whose worker did not begin
    _spare: list[tuple[Connection, SpawnProcess]] = field(default_factory=list)
    _asked: bool = False  # the workers were asked to stop

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._active.values():  # none, unless there is a bug
            worker.process.terminate()
            ended(worker.process, END_LIMIT)
        for pipe, process in self._spare:
            pipe.close()  # which ends it
            ended(process, END_LIMIT)

    def warm_up(self, number: int) -> None:
        """Start up to so many workers ahead of their orders, as each takes a quarter of a second to start."""
        with suppress(OSError):  # their jobs report it
            while len(self._spare) < min(number, self.settings.workers):
                self._spare.append(self._spawned())

    def run(self, orders: Sequence[JobOrder]) -> Sequence[JobResult]:
        """Do the jobs in this order; when stopped, wait for the workers to clean up."""
        waiting = self._waiting = deque(orders)
        self._results = []
        for order in orders:
            self.reporter.planned(order.uuid, order.name, order.size)
        self._run(waiting)
        return self._results + [JobResult(one.name, one.uuid, Status.SKIPPED, NOT_BEGUN) for one in waiting]

    def _run(self, waiting: deque[JobOrder]) -> None:
        while self._active or (waiting and not self.stop.requested):
            while waiting and len(self._active) < self.settings.workers and not self.stop.requested:
                self._start(waiting.popleft())
            self._pass_on_stop()
            for unheard, worker in list(self._active.items()):
                if unheard.poll():  # this process itself may have been stopped
                    continue
                self._end_if_hung(worker)
                if time.monotonic() > worker.killed + END_LIMIT:
                    self._over(unheard, 0)
            for pipe in wait(list(self._active), STOP_POLL):
                assert isinstance(pipe, Connection)
                self._receive(pipe)

    def _start(self, order: JobOrder) -> None:
        try:
            pipe, process = self._spare.pop() if self._spare else self._spawned()
        except OSError as error:  # out of memory or processes
            self._not_started(order, reason(error))
            return
        taken = {worker.lane for worker in self._active.values()}
        lane = next(number for number in count(1) if number not in taken)
        try:
            # in a thread: a large order does not fit into the pipe, and a stopped worker does not read
            handed = begun(partial(pipe.send, order))
        except NoThread as error:  # the worker goes on waiting
            self._spare.append((pipe, process))
            self._not_started(order, error.message)
            return
        self._active[pipe] = Worker(order, process, lane, handed)

    def _not_started(self, order: JobOrder, why: str) -> None:
        """Record that no worker could take the order: this domain's failure alone, and it is retried."""
        message = f"cannot start its worker process: {why}"
        self._done(JobResult(order.name, order.uuid, Status.FAILED, message, transient=True))

    def _spawned(self) -> tuple[Connection, SpawnProcess]:
        """Start a process that waits for its order. Raises OSError."""
        ours, theirs = SPAWN.Pipe()
        with theirs:
            process = SPAWN.Process(
                target=work,
                args=(self.settings, self.output, theirs, os.getpid(), self.lifeline),
                name="worker",
            )
            try:
                with spawning():
                    process.start()
            except OSError:
                ours.close()
                raise
        return ours, process

    def _pass_on_stop(self) -> None:
        if self.stop.requested and not self._asked:
            self._asked = True
            self._ask_to_stop()
        if self.stop.signalled_twice:
            self._kill()

    def _ask_to_stop(self) -> None:
        text = "stopping: waiting for the workers to clean up; a second signal kills them"
        self.reporter.message(Level.WARNING, "", text)
        for worker in self._active.values():
            worker.process.terminate()

    def _kill(self) -> None:
        for worker in self._active.values():
            worker.kill()

    def _end_if_hung(self, worker: Worker) -> None:
        """Ask a worker to stop that gave no sign of life in time; if it does not end, kill it in two steps.

        A worker that hangs in a call of librbd or libvirt cannot react to the request.
        """
        if time.monotonic() < worker.deadline:
            if text := worker.newly_silent():
                self.reporter.message(Level.WARNING, worker.order.name, text)
            return
        if worker.result:  # it only has to end
            worker.kill()
            return
        if worker.hung and worker.begun and not worker.stacks_shown:
            worker.show_stacks()
            worker.deadline = time.monotonic() + STACKS_LIMIT
            return
        if worker.hung or not worker.begun:  # one that has not begun has nothing to clean up
            worker.hung = True
            worker.kill()
            return
        worker.hung = True
        worker.deadline = time.monotonic() + HUNG_GRACE
        self.reporter.message(Level.ERROR, worker.order.name, f"{worker.hung_text}: ending its worker")
        worker.process.terminate()

    def _receive(self, pipe: Connection) -> None:
        worker = self._active[pipe]
        try:
            item = pipe.recv()
        except (EOFError, OSError):  # OSError: killed in the middle of a message
            self._over(pipe, END_LIMIT)
            return
        worker.record_life()
        if isinstance(item, Message):
            self.reporter.message(item.level, item.domain, item.text)
        elif isinstance(item, Progress):
            self.reporter.progress(item.domain, item.target, item.done, item.size)
        elif isinstance(item, PhaseBegun):
            worker.enters(item)
            self.reporter.phase(item.domain, item.phase, item.limit)
        elif isinstance(item, Saved):
            worker.saved = item.result
        else:
            worker.result, worker.deadline = item, time.monotonic() + END_LIMIT

    def _over(self, pipe: Connection, limit: float) -> None:
        """Go on without a worker that ends within `limit` seconds, or does not although it was killed."""
        worker = self._active.pop(pipe)
        if gone := ended(worker.process, limit):
            worker.handed.exception()  # the call ends now, as the other end is closed
        pipe.close()
        self._record_result(worker)  # which thaws its guest first
        if not gone and worker.process.pid:  # its programs are no orphans, neither here nor for the watchdog
            free_slots_of(worker.process.pid, self.settings.runtime_dir, "stream")
            end_programs_of(worker.process.pid, self.settings.runtime_dir, END_LIMIT)

    def _record_result(self, worker: Worker) -> None:
        """Record the job's result. A worker that died costs its own domain and nothing else."""
        order, result = worker.order, worker.result
        if worker.hung and not worker.begun and order.uuid not in self._replaced:
            self._replaced.add(order.uuid)
            self._waiting.appendleft(order)
            self.reporter.message(Level.WARNING, order.name, f"{worker.hung_text}: starting another worker")
            return
        if result is None:
            result = self._died(worker)
        if worker.hung and result.status is Status.FAILED:
            gone = worker.process.exitcode is not None
            hint = f"do libvirt, the cluster and the output answer? see {COMMAND} check"
            # retried, also if it could clean up; beside one that does not end a second would hang as well
            transient = result.transient or (gone and not worker.saved)
            result = replace(
                result,
                reason=f"{worker.hung_text}; {result.reason}",
                hint=hint if gone else result.hint,
                transient=transient,
            )
        if worker.saved and not worker.result:
            result = replace(result, reason=f"saved, but {result.reason}")
        self._done(replace(result, timeline=worker.timeline))

    def _died(self, worker: Worker) -> JobResult:
        """Return the result of a worker that has sent none."""
        order, code = worker.order, worker.process.exitcode
        crashed = code is not None and -code in CRASHES
        if code is None:
            how, hint = "was killed, but does not end", STUCK_HINT
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            hint = "out of memory? see the kernel log" if code == -signal.SIGKILL else ""
        else:
            how, hint = f"ended with exit code {code}", ""
        if crashed:
            hint = "a library crashed, perhaps librbd: the stacks are in the error output"
            hint += "" if worker.saved else "; is retried"
        if why := self.worker_died(order, self._pass_on_stop):
            how, hint = f"{how}: {why}", "was it stopped, or is the node short of memory?"
        message = f"its worker process {how}"
        if worker.saved:  # what it has left is removed by the next run
            return replace(worker.saved, status=Status.FAILED, reason=message, hint=hint)
        transient = crashed or not worker.begun  # killed for lack of memory while it was a spare one, perhaps
        return JobResult(order.name, order.uuid, Status.FAILED, message, hint, transient=transient)

    def _done(self, result: JobResult) -> None:
        self._results.append(result)
        self.reporter.ended(result.uuid, failed=result.status is Status.FAILED)
        if result.status is Status.FAILED:
            hint = f" (hint: {result.hint})" if result.hint else ""
            self.reporter.message(Level.ERROR, result.name, f"failed: {result.reason}{hint}")
        elif result.status is Status.SKIPPED:
            self.reporter.message(Level.INFO, result.name, f"skipped: {result.reason}")
