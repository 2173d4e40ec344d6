"""The progress of a run as values: which jobs run, in which phase, how far they are and how fast."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Optional

from ...job_result import Phase

WINDOW = 20.0  # seconds over which a rate is averaged
SETTLED = 10.0  # seconds of flowing bytes before the time left is estimated


class Meter:
    """The rate at which bytes flow: the mean over the last WINDOW seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._began = 0.0

    def record(self, moment: float, done: int) -> None:
        """Record how many bytes have flowed by now; fewer than before means a new beginning."""
        if not self._samples or done < self._samples[-1][1]:
            self._samples.clear()
            self._began = moment
        self._samples.append((moment, done))
        self._forget(moment)

    def rate(self, now: float) -> float:
        """Give bytes per second, 0 while unknown."""
        self._forget(now)
        if not self._samples or now - self._samples[0][0] < 1:
            return 0.0
        (first, before), (_, done) = self._samples[0], self._samples[-1]
        return (done - before) / (now - first)

    def seconds_for(self, rest: int, now: float) -> Optional[float]:
        """Estimate the seconds for the rest at this rate, None while that would be a guess."""
        rate = self.rate(now)
        return rest / rate if rate and now - self._began >= SETTLED else None

    def _forget(self, now: float) -> None:
        """Drop old samples, but for the newest that is older than the window."""
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW:
            self._samples.popleft()


@dataclass(frozen=True)
class JobProgress:
    """The progress of a job. Bytes of images, holes included; `total` is 0 if unknown.

    `targets` are the disks under way. `left` is in seconds, None if it would be a guess.
    """

    domain: str
    phase: Phase
    targets: tuple[str, ...] = ()
    done: int = 0
    total: int = 0
    rate: float = 0.0
    left: Optional[float] = None


@dataclass(frozen=True)
class RunProgress:
    """The progress of a run: the running jobs, and the totals of all. `seconds` since the beginning."""

    jobs: tuple[JobProgress, ...]
    planned: int
    ended: int
    failed: int
    done: int
    total: int
    rate: float
    left: Optional[float]
    seconds: float


@dataclass
class _Job:
    """A domain's job. `size`: the bytes that it has to transfer, 0 if unknown."""

    domain: str
    size: int = 0
    phase: Optional[Phase] = None
    failed: Optional[bool] = None  # None until it has ended
    passes: dict[tuple[Phase, str], tuple[int, int]] = field(default_factory=dict)  # done, size
    meter: Meter = field(default_factory=Meter)

    @property
    def passed(self) -> int:
        return sum(done for done, _ in self.passes.values())

    @property
    def total(self) -> int:
        """Give the bytes of all its images, or of what the output has to read."""
        if self.failed:
            return self.passed  # the rest never comes
        known = sum(size for _, size in self.passes.values())
        return known if any(not target for _, target in self.passes) else self.size and max(self.size, known)

    @property
    def done(self) -> int:
        """Give the transferred bytes; the last ones of a job that succeeded may not have been reported."""
        return self.passed if self.failed is not False else self.total or self.passed


class Activity:
    """Collects the reports of all jobs. `now` is in seconds, of one clock."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._jobs: dict[str, _Job] = {}  # by UUID, or by name where none was planned

    def planned(self, uuid: str, domain: str, size: int) -> None:
        """Add a job, or its second attempt."""
        self._jobs[uuid] = _Job(domain, size)

    def ended(self, uuid: str, failed: bool) -> None:
        self._jobs[uuid].failed = failed

    def phase(self, domain: str, phase: Phase) -> bool:
        """Record the phase; return whether it has changed."""
        job = self._job(domain)
        changed = job.phase is not phase
        job.phase = phase
        return changed

    def progress(self, domain: str, target: str, done: int, size: int, now: float) -> None:
        job = self._job(domain)
        job.phase = job.phase or Phase.STREAM
        job.passes[job.phase, target] = done, size
        job.meter.record(now, job.passed)

    def current(self, now: float) -> RunProgress:
        jobs = self._jobs.values()
        running = tuple(
            _job_progress(job, job.phase, now) for job in jobs if job.phase and job.failed is None
        )
        done, rate = sum(job.done for job in jobs), sum(job.rate for job in running)
        total = (
            sum(job.total for job in jobs) if all(job.total or job.failed is not None for job in jobs) else 0
        )
        settled = any(job.left is not None for job in running)
        return RunProgress(
            jobs=running,
            planned=len(jobs),
            ended=sum(job.failed is not None for job in jobs),
            failed=sum(job.failed is True for job in jobs),
            done=done,
            total=total,
            rate=rate,
            left=(total - done) / rate if total and settled else None,
            seconds=now - self._began,
        )

    def _job(self, domain: str) -> _Job:
        """Give the domain's job that has not ended; several libvirts may have domains of one name."""
        for job in self._jobs.values():
            if job.domain == domain and job.failed is None:
                return job
        return self._jobs.setdefault(domain, _Job(domain))


def _job_progress(job: _Job, phase: Phase, now: float) -> JobProgress:
    under_way = {
        target: done < size for (in_phase, target), (done, size) in job.passes.items() if in_phase is phase
    }
    if not under_way:  # a phase in which no bytes flow
        return JobProgress(job.domain, phase, done=job.done, total=job.total)
    targets = tuple(target for target, unfinished in under_way.items() if unfinished and target)
    rest = max(0, job.total - job.done)
    left = job.meter.seconds_for(rest, now) if job.total else None
    return JobProgress(job.domain, phase, targets, job.done, job.total, job.meter.rate(now), left)
