"""The last reports as one page: report.html holds its words, report.css its looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import jinja2

from ... import __version__
from ...text import duration_text, one_line, size_text
from ..past_runs import PastRuns
from ..report_types import DomainEntry, Report
from ..timeline import WIDTH, picture
from ..totals import amounts, count, problems, verdict

ORDER = ("failed", "saved", "skipped")  # of the domains


def page(past: PastRuns, made: datetime) -> bytes:
    """Give the page about this run, with what each domain came to on the last days.

    It is all ASCII, so that no server's or locale's idea of an encoding can harm it.
    """
    report, days = past.report, past.days
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters.update(bytes=size_text, duration=duration_text, moment=_moment)
    values = {
        "report": report,
        "verdict": verdict(report),
        "counts": {status: count(report, status) for status in ORDER},
        "seconds": _seconds(report),
        "totals": amounts(report["domains"]),
        "frozen_longest": max((domain["frozen_seconds"] for domain in report["domains"]), default=0),
        "problems": problems(report),
        "picture": picture(report),
        "picture_width": WIDTH,
        "dates": days.dates,
        "months": list(days.months),
        "rows": days.rows(),
        "domains": [(domain, amounts([domain])) for domain in _sorted(report["domains"])],
        "not_covered": _not_covered(report),
        "left_out": past.left_out,
        "made": made,
        "version": __version__,
    }
    return environment.get_template("report.html").render(values).encode("ascii", "xmlcharrefreplace")


def _printable(value: object) -> object:
    """Make plain text safe to look at; what is markup already (of a macro) is so."""
    return one_line(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _moment(text: str) -> str:
    """Give an ISO 8601 moment, in UTC as all are, to the minute."""
    return text[:16].replace("T", " ")


def _seconds(report: Report) -> float:
    begin, end = map(datetime.fromisoformat, (report["started"], report["finished"]))
    return (end - begin).total_seconds()


def _sorted(domains: Sequence[DomainEntry]) -> Sequence[DomainEntry]:
    return sorted(domains, key=lambda domain: (ORDER.index(domain["status"]), domain["name"].casefold()))


def _not_covered(report: Report) -> Mapping[str, Sequence[str]]:
    """Give the disks that are in no restore point, by the reason."""
    disks: dict[str, list[str]] = {}
    for domain in report["domains"]:
        for disk in domain["not_covered"]:
            source = f" ({disk['source']})" if disk["source"] else ""
            disks.setdefault(disk["reason"], []).append(f"{domain['name']}: {disk['target']}{source}")
    return disks
