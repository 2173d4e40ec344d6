"""Makes the HTML page about the last runs from the template report.html and the style sheet report.css."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import jinja2

from ... import __version__
from ...text import duration_text, one_line, size_text
from ..past_runs import PastRuns
from ..report_types import DomainEntry, Report
from ..timeline import WIDTH, run_timeline
from ..totals import amounts, count, problems, verdict

ORDER = ("failed", "saved", "skipped")  # of the domains


def page(past: PastRuns, made: datetime) -> bytes:
    """Give the page about this run, with the calendar of the last days.

    It is pure ASCII, so that no server's or locale's encoding can damage it.
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
        "timeline": run_timeline(report),
        "timeline_width": WIDTH,
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
    """Make plain text safe to display; markup of a macro is safe already."""
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
    """Give the disks that are in no restore point, by the reason why."""
    disks: dict[str, list[str]] = {}
    for domain in report["domains"]:
        for disk in domain["not_covered"]:
            source = f" ({disk['source']})" if disk["source"] else ""
            disks.setdefault(disk["reason"], []).append(f"{domain['name']}: {disk['target']}{source}")
    return disks
