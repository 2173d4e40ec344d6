"""Monitors a restic that reads segments."""

from __future__ import annotations

import time

from backup.protocols import Job
from backup.system.pipe_writer import Stalled

from .files import SegmentFiles


class Monitor:
    """Monitors a restic that reads segments: errors of their readers, stalls, progress."""

    def __init__(self, files: SegmentFiles, size: int, stall_timeout: float, domain: str, job: Job) -> None:
        """`size` is the number of bytes that restic will probably read."""
        self._files = files
        self._size = size
        self._stall_timeout = stall_timeout
        self._domain = domain
        self._job = job
        self._served, self._since = 0, time.monotonic()

    def check(self) -> None:
        """Report progress. Raises what has to end restic."""
        self._job.check_stop()
        if self._files.error:
            raise self._files.error
        now = time.monotonic()
        if self._files.loading:  # waiting for the cluster, which has its own time limits
            self._since = now
        if self._files.served != self._served:
            self._served, self._since = self._files.served, now
            self._job.reporter.progress(self._domain, "", self._served, max(self._size, self._served))
        elif now > self._since + self._stall_timeout:
            message = f"the output took no byte for {self._stall_timeout:.0f} s"
            raise Stalled(message, "is the repository's host reachable? see OUTPUT_STALL_TIMEOUT")
