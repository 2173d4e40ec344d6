"""A report as a few lines of text."""

from __future__ import annotations

from datetime import datetime

from ..report.past_runs import PastRuns
from ..report.report_types import DomainEntry
from ..report.totals import amounts, problems, verdict
from ..text import duration_text, one_line, size_text
from .tables import table


def report_text(past: PastRuns) -> str:
    """Give the result of the run, a row per domain, and each problem with its hint."""
    report = past.report
    begin, end = map(datetime.fromisoformat, (report["started"], report["finished"]))
    took = duration_text((end - begin).total_seconds())
    of_group = f" of group {report['group']}" if "group" in report else ""
    lines = [f"run {report['run']}{of_group} on {report['host']}, {begin:%Y-%m-%d %H:%M} UTC, {took}"]
    if report["named"]:
        lines.append(f"selected on the command line: {', '.join(report['named'])}")
    lines.append(f"{verdict(report)} (exit code {report['exit_code']})")
    if past.copy:
        lines.append(str(past.copy))
    text = "".join(f"{one_line(line)}\n" for line in lines)
    if report["domains"]:
        head = ("domain", "result", "consistency", "frozen", "size", "data", "read", "stored", "rate", "time")
        text += "\n" + table(head, [_row(domain) for domain in report["domains"]])
    for problem in problems(report):
        names = f"{', '.join(problem.domains)}: " if problem.domains else ""
        text += f"\n{one_line(names + problem.what)}\n"
        text += f"hint: {one_line(problem.hint)}\n" if problem.hint else ""
    return text


def _row(domain: DomainEntry) -> tuple[str, ...]:
    result = domain["status"]
    if result == "skipped":
        result += f": {domain['reason']}"
    frozen, taken = domain["frozen_seconds"], domain["seconds"]
    sums = amounts([domain])
    sizes = [size_text(one) for one in (sums.size, sums.data, sums.read, sums.stored)] if sums else ["-"] * 4
    return (
        domain["name"],
        result,
        domain["consistency"] or "-",
        duration_text(frozen) if frozen else "-",
        *sizes,
        f"{size_text(sums.rate)}/s" if sums and sums.rate else "-",
        duration_text(taken) if domain["timeline"] else "-",
    )
