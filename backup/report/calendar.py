"""What each domain came to on each of the last days, from the reports of all runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import groupby

from .report_types import Report

COUNT = 30  # days
TOLD = 4  # results of one day that are told one by one
REASON = 90  # letters of a reason that are shown


@dataclass(frozen=True)
class Day:
    """What a domain came to on a day.

    `kind` is the consistency of the newest restore point; else "failed", "skipped", or "" for nothing.
    `failed` tells that a run failed too.
    """

    kind: str = ""
    failed: bool = False
    words: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    days: Sequence[Day]

    @property
    def ends_badly(self) -> bool:
        """Whether there was no restore point on the last day on which one was tried."""
        return next((day.kind == "failed" for day in reversed(self.days) if day.kind), False)


@dataclass(frozen=True)
class _Result:
    """The result of one job on a day; `time` is HH:MM."""

    time: str
    status: str
    consistency: str
    reason: str


@dataclass
class Days:
    """Takes reports, newest first, and gives a row per domain that was saved, or was to be."""

    last: date
    _names: dict[str, str] = field(default_factory=dict)  # by UUID, the newest
    _results: dict[str, dict[str, list[_Result]]] = field(default_factory=dict)  # by UUID and day

    @property
    def dates(self) -> Sequence[date]:
        return [self.last - timedelta(days=ago) for ago in reversed(range(COUNT))]

    @property
    def months(self) -> Iterator[tuple[str, int]]:
        """Yield each month, and how many of the days it has."""
        for month, days in groupby(self.dates, lambda day: f"{day:%B}"):
            yield month, len(list(days))

    def add(self, report: Report) -> None:
        oldest = self.dates[0].isoformat()
        for domain in report["domains"]:
            who = domain["uuid"] or domain["name"]
            self._names.setdefault(who, domain["name"])
            when = (domain["taken"] or report["started"])[:16]
            if when[:10] < oldest:
                continue
            result = _Result(when[11:], domain["status"], domain["consistency"] or "", domain["reason"])
            self._results.setdefault(who, {}).setdefault(when[:10], []).append(result)

    def rows(self) -> Sequence[Row]:
        """Give those that failed last first."""
        dates = [day.isoformat() for day in self.dates]
        rows = [
            Row(self._names[who], [_day(days[day]) if day in days else Day() for day in dates])
            for who, days in self._results.items()
        ]
        shown = [row for row in rows if any(day.kind not in ("", "skipped") for day in row.days)]
        return sorted(shown, key=lambda row: (not row.ends_badly, row.name.casefold()))


def _day(results: Sequence[_Result]) -> Day:
    """Give what these come to, newest first."""
    failed = any(result.status == "failed" for result in results)
    saved = next((result.consistency for result in results if result.consistency), "")
    told = "; ".join(_words(result) for result in results[:TOLD])
    more = f"; {len(results) - TOLD} more" if len(results) > TOLD else ""
    return Day(saved or ("failed" if failed else "skipped"), failed, told + more)


def _words(result: _Result) -> str:
    reason = result.reason
    text = f"{result.time} {result.status}"
    text += f", {result.consistency}" if result.consistency else ""
    cut = reason if len(reason) <= REASON else f"{reason[: REASON - 1]}…"
    return f"{text}: {cut}" if reason else text
