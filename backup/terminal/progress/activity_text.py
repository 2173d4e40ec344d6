"""The progress of a run as text."""

from __future__ import annotations

from ...text import clock_text, size_text
from .activity import JobProgress, RunProgress


def doing(job: JobProgress) -> str:
    """Give the phase, and the disks that are under way."""
    return " ".join((job.phase.value, *job.targets))


def percent(done: int, total: int) -> str:
    return f"{100 * done // total} %" if total else ""


def amount(done: int, total: int) -> str:
    return f"{size_text(done)} of {size_text(total)}" if total else size_text(done) if done else ""


def rate(bytes_per_second: float) -> str:
    return f"{size_text(bytes_per_second)}/s" if bytes_per_second else ""


def left(seconds: float | None) -> str:
    return "" if seconds is None else f"{clock_text(seconds)} left"


def job_text(job: JobProgress) -> str:
    """Give a job's line: streaming vda, 45 % (4.5 GiB of 10.0 GiB), 312.0 MiB/s, 0:18 left."""
    part = percent(job.done, job.total)
    far = f"{part} ({amount(job.done, job.total)})" if part else amount(job.done, job.total)
    return _listed(doing(job), far, rate(job.rate), left(job.left))


def short_job_text(job: JobProgress) -> str:
    return " ".join(filter(None, (job.domain, doing(job), percent(job.done, job.total))))


def run_text(run: RunProgress) -> str:
    """Give the totals of all jobs that are known, the most important first."""
    return _listed(
        outcomes_text(run),
        percent(run.done, run.total),
        left(run.left),
        amount(run.done, run.total),
        rate(run.rate),
        f"running for {clock_text(run.seconds)}",
    )


def outcomes_text(run: RunProgress) -> str:
    """Give how many jobs have ended, if there are several, and how many failed."""
    return _listed(
        f"{run.ended} of {run.planned} domains done" if run.planned > 1 else "",
        f"{run.failed} failed" if run.failed else "",
    )


def _listed(*parts: str) -> str:
    return ", ".join(filter(None, parts))
