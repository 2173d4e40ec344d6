"""Streams a domain's images at the same time, within one limit for all workers of the node."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Callable, TypeVar

from backup.errors import BackupError
from backup.model import Level
from backup.protocols import Job, SnapshotSource
from backup.stored import SavedImage
from backup.system.concurrency_limit import POLL, Slots
from backup.system.time_limit import STOP_POLL

FURTHER_POLL = 1.0  # seconds: a domain of which an image is streamed asks less often than one with none
WAITING_INTERVAL = 30.0  # seconds between two signs of life of a worker that waits for a slot

Result = TypeVar("Result")


class StreamedJob:
    """The job as its streams see it: if one of them fails, all have to stop. Satisfies protocols.Job."""

    def __init__(self, job: Job) -> None:
        self.failure: BaseException | None = None  # the first one
        self.running = 0
        self.reporter = job.reporter
        self._job = job
        self._lock = threading.Lock()

    @property
    def verifies(self) -> bool:
        return self._job.verifies

    def check_stop(self) -> None:
        self._job.check_stop()
        if self.failure:
            raise BackupError("another image of the domain failed")

    def require_lock(self) -> None:
        self._job.require_lock()

    def image_saved(self, source: SnapshotSource, image: SavedImage) -> None:
        self._job.image_saved(source, image)

    def fail(self, error: BaseException) -> None:
        """Stop all streams; the first failure counts, as others may only follow from it."""
        with self._lock:
            self.failure = self.failure or error

    def count(self, change: int) -> None:
        with self._lock:
            self.running += change


@dataclass(frozen=True)
class Streams:
    """Streams images, each in a thread with one of the node's slots, which bound memory and load."""

    slots: Slots
    domain: str

    def each(
        self,
        sources: Sequence[SnapshotSource],
        job: Job,
        save: Callable[[SnapshotSource, Job], Result],
    ) -> Sequence[Result]:
        """Call `save` for each source, and return what it returned, in the order of the sources.

        It has to call `check_stop` of the job that it gets. After the first error no other image is begun,
        those under way are stopped (one that waits for a silent cluster once it answers, or is given up), and
        that error is raised when all have ended.
        """
        streamed = StreamedJob(job)
        number = max(1, min(len(sources), self.slots.count))
        with ThreadPoolExecutor(number, thread_name_prefix="stream") as threads:
            try:
                futures = [threads.submit(self._one, source, streamed, save) for source in sources]
                while wait(futures, STOP_POLL).not_done:
                    pass  # signals are handled in this thread, but only when it wakes up
            except BaseException as error:  # such as no further thread: those under way do not go on
                streamed.fail(error)
                raise
        job.check_stop()  # before the error of a restic that got the same signal
        if streamed.failure:
            raise streamed.failure
        return [future.result() for future in futures]

    def _one(
        self, source: SnapshotSource, job: StreamedJob, save: Callable[[SnapshotSource, Job], Result]
    ) -> Result:
        try:
            job.check_stop()
            with self.slots.whenever_free(partial(self._wait, source, job, _Interval())):
                job.count(1)
                try:
                    return save(source, job)
                finally:
                    job.count(-1)
        except BaseException as error:  # a bug, too, stops the others
            job.fail(error)
            raise

    def _wait(self, source: SnapshotSource, job: StreamedJob, interval: _Interval) -> None:
        job.check_stop()
        if not job.running and interval.due():  # or a stream that hangs would not be noticed
            text = f"{source.disk.target} waits until fewer than {self.slots.count} images are streamed"
            job.reporter.message(Level.DEBUG, self.domain, f"{text} (STREAMS)")
        pause = FURTHER_POLL if job.running else POLL
        deadline = time.monotonic() + pause
        while (left := deadline - time.monotonic()) > 0:
            job.check_stop()
            time.sleep(min(POLL, left))


class _Interval:
    """Decides when a worker that waits has to give a sign of life."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + WAITING_INTERVAL
        return True
