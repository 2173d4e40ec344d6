"""The result of each domain on each of the last days, from the reports of all runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import groupby

from .report_types import Report

COUNT = 30  # days
SHOWN = 4  # results of one day that are shown one by one
REASON = 90  # characters of a reason that are shown


@dataclass(frozen=True)
class Day:
    """The results of a domain on one day.

    `kind` is the consistency of the newest restore point; without one "failed", "skipped", or "" for no
    result. `failed`: a job failed, too. `text` has the results one by one.
    """

    kind: str = ""
    failed: bool = False
    text: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    days: Sequence[Day]

    @property
    def ends_badly(self) -> bool:
        """Whether the last day with a result has a failure and no restore point."""
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
    """Takes reports, newest first, and gives a row per domain that was saved or failed."""

    last: date
    _names: dict[str, str] = field(default_factory=dict)  # by UUID, the newest
    _results: dict[str, dict[str, list[_Result]]] = field(default_factory=dict)  # by UUID and day

    @property
    def dates(self) -> Sequence[date]:
        return [self.last - timedelta(days=ago) for ago in reversed(range(COUNT))]

    @property
    def months(self) -> Iterator[tuple[str, int]]:
        """Yield each month, and how many of the days are in it."""
        for month, days in groupby(self.dates, lambda day: f"{day:%B}"):
            yield month, len(list(days))

    def add(self, report: Report) -> None:
        oldest = self.dates[0].isoformat()
        for domain in report["domains"]:
            key = domain["uuid"] or domain["name"]
            self._names.setdefault(key, domain["name"])
            moment = (domain["taken"] or report["started"])[:16]
            if moment[:10] < oldest:
                continue
            result = _Result(moment[11:], domain["status"], domain["consistency"] or "", domain["reason"])
            self._results.setdefault(key, {}).setdefault(moment[:10], []).append(result)

    def rows(self) -> Sequence[Row]:
        """Give the rows; those whose last day failed come first."""
        dates = [day.isoformat() for day in self.dates]
        rows = [
            Row(self._names[key], [_day(days[day]) if day in days else Day() for day in dates])
            for key, days in self._results.items()
        ]
        shown = [row for row in rows if any(day.kind not in ("", "skipped") for day in row.days)]
        return sorted(shown, key=lambda row: (not row.ends_badly, row.name.casefold()))


def _day(results: Sequence[_Result]) -> Day:
    """Give the day of these results, which come newest first."""
    failed = any(result.status == "failed" for result in results)
    saved = next((result.consistency for result in results if result.consistency), "")
    shown = "; ".join(map(_text, results[:SHOWN]))
    more = f"; {len(results) - SHOWN} more" if len(results) > SHOWN else ""
    return Day(saved or ("failed" if failed else "skipped"), failed, shown + more)


def _text(result: _Result) -> str:
    reason = result.reason
    text = f"{result.time} {result.status}"
    text += f", {result.consistency}" if result.consistency else ""
    cut = reason if len(reason) <= REASON else f"{reason[: REASON - 1]}…"
    return f"{text}: {cut}" if reason else text
