"""Makes the HTML page about the last runs from the template report.html and the style sheet report.css."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2
import markupsafe

from ... import __version__
from ...text import duration_text, one_line, size_text
from ..past_runs import PastRuns
from ..report_types import DomainEntry, Report
from ..timeline import WIDTH, run_timeline
from ..totals import amounts, count, problems, verdict

ORDER = ("failed", "saved", "skipped")  # of the domains


def page(pasts: Sequence[PastRuns], made: datetime) -> bytes:
    """Give the page about these runs, one of each group, with the calendar of the last days.

    It is pure ASCII, so that no server's or locale's encoding can damage it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters.update(bytes=size_text, duration=duration_text, moment=_moment)
    template = environment.get_template("run.html")
    runs = [_run(past, template, len(pasts) == 1) for past in pasts]
    failed = [run for run in runs if run.kind == "failed"]
    values = {
        "host": pasts[0].report["host"],
        "verdict": runs[0].verdict if len(runs) == 1 else _verdict(len(failed), len(runs)),
        "kind": "failed" if failed else "saved",
        "runs": runs,
        "left_out": sum(past.left_out for past in pasts),
        "made": made,
        "version": __version__,
    }
    return environment.get_template("report.html").render(values).encode("ascii", "xmlcharrefreplace")


@dataclass(frozen=True)
class _Run:
    """A run's part of the page: `kind` is its result, `body` its HTML."""

    kind: str
    verdict: str
    title: str
    anchor: str
    body: markupsafe.Markup


def _run(past: PastRuns, template: jinja2.Template, alone: bool) -> _Run:
    """Give a run's part, which is the whole page if it is alone."""
    report, days = past.report, past.days
    group = report.get("group", "")
    title = f"group {group}" if group else "" if alone else "without a group"
    kind = "saved" if report["exit_code"] == 0 else "failed"
    values = {
        "report": report,
        "title": title,
        "main": "main" if alone else "div",
        "kind": kind,
        "verdict": verdict(report),
        "counts": {status: count(report, status) for status in ORDER},
        "seconds": _seconds(report),
        "totals": amounts(report["domains"]),
        "frozen_longest": max((domain["frozen_seconds"] for domain in report["domains"]), default=0),
        "copy": past.copy,
        "problems": problems(report),
        "timeline": run_timeline(report),
        "timeline_width": WIDTH,
        "dates": days.dates,
        "months": list(days.months),
        "rows": days.rows(),
        "domains": [(domain, amounts([domain])) for domain in _sorted(report["domains"])],
        "not_covered": _not_covered(report),
    }
    body = markupsafe.Markup(template.render(values))
    return _Run(kind, verdict(report), title, f"group-{group}" if group else "without-group", body)


def _verdict(failed: int, number: int) -> str:
    return f"The last runs of {failed} of {number} groups failed" if failed else f"{number} groups saved"


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
