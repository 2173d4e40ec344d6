"""The totals, the verdict and the problems of a report."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional

from ..exit_codes import NOTHING_DONE, SIGNALLED
from .report_types import DomainEntry, Report


@dataclass(frozen=True)
class Amounts:
    """The sums over some images: bytes, and the seconds that they took, added up."""

    size: int
    data: int
    read: int
    skipped: int
    stored: int
    seconds: float

    @property
    def rate(self) -> Optional[float]:
        """Bytes read per second; None if none were."""
        return self.read / self.seconds if self.read and self.seconds else None


def amounts(domains: Iterable[DomainEntry]) -> Amounts | None:
    """Add up the images of these domains; None if no image is saved."""
    images = [image for domain in domains for image in domain["images"]]
    if not images:
        return None
    return Amounts(
        size=sum(image["size"] for image in images),
        data=sum(image["data_bytes"] for image in images),
        read=sum(image["read_bytes"] for image in images),
        skipped=sum(image["skipped_bytes"] for image in images),
        stored=sum(image["stored_bytes"] for image in images),
        seconds=sum(image["seconds"] for image in images),
    )


def count(report: Report, status: str) -> int:
    return sum(domain["status"] == status for domain in report["domains"])


def verdict(report: Report) -> str:
    """Describe the result of the run, such as "1 of 3 domains failed"."""
    saved, failed = count(report, "saved"), count(report, "failed")
    code = report["exit_code"]
    if code > SIGNALLED:
        return f"Interrupted by {signal.Signals(code - SIGNALLED).name}, {saved} saved"
    if code == NOTHING_DONE:
        return "Nothing could be done"
    if failed:
        return f"{failed} of {saved + failed} domains failed"
    if report["errors"]:
        return f"{_domains(saved)} saved, the run had errors"
    return f"{_domains(saved)} saved" if saved else "Nothing to do"


def _domains(number: int) -> str:
    return f"{number} domain{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Problem:
    """A failure of these domains, or of none in particular, and the hint how to fix it."""

    what: str
    hint: str = ""
    domains: tuple[str, ...] = ()


def problems(report: Report) -> Sequence[Problem]:
    """Give the run's errors and failures; domains that failed for the same reason are one problem."""
    alike: dict[tuple[str, str], list[str]] = {}
    for domain in report["domains"]:
        if domain["status"] == "failed":
            alike.setdefault((domain["reason"], domain["hint"]), []).append(domain["name"])
    for domain in report["domains"]:
        if domain["proof_failure"]:
            what = f"a verification or drill failed: {domain['proof_failure']}"
            alike.setdefault((what, ""), []).append(domain["name"])
    found = [Problem(error) for error in report["errors"]]
    return found + [Problem(what, hint, tuple(names)) for (what, hint), names in alike.items()]
