"""What is going on, in words."""

from __future__ import annotations

from ...text import clock_text, size_text
from .activity import JobLook, Look


def doing(job: JobLook) -> str:
    """Give the phase, and the disks that it is about."""
    return " ".join((job.phase.value, *job.targets))


def percent(done: int, total: int) -> str:
    return f"{100 * done // total} %" if total else ""


def amount(done: int, total: int) -> str:
    return f"{size_text(done)} of {size_text(total)}" if total else size_text(done) if done else ""


def rate(bytes_per_second: float) -> str:
    return f"{size_text(bytes_per_second)}/s" if bytes_per_second else ""


def left(seconds: float | None) -> str:
    return "" if seconds is None else f"{clock_text(seconds)} left"


def job_text(job: JobLook) -> str:
    """Give a job's line: streaming vda, 45 % (4.5 GiB of 10.0 GiB), 312.0 MiB/s, 0:18 left."""
    part = percent(job.done, job.total)
    far = f"{part} ({amount(job.done, job.total)})" if part else amount(job.done, job.total)
    return _listed(doing(job), far, rate(job.rate), left(job.left))


def short_job_text(job: JobLook) -> str:
    return " ".join(filter(None, (job.domain, doing(job), percent(job.done, job.total))))


def run_text(look: Look) -> str:
    """Give the totals of all jobs, as far as they are known, what matters most first."""
    return _listed(
        outcomes_text(look),
        percent(look.done, look.total),
        left(look.left),
        amount(look.done, look.total),
        rate(look.rate),
        f"running for {clock_text(look.seconds)}",
    )


def outcomes_text(look: Look) -> str:
    """Tell how many jobs have ended, if there are several, and how."""
    return _listed(
        f"{look.ended} of {look.planned} domains done" if look.planned > 1 else "",
        f"{look.failed} failed" if look.failed else "",
    )


def _listed(*parts: str) -> str:
    return ", ".join(filter(None, parts))
