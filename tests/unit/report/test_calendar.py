"""backup/report/calendar.py: the result of each domain on each of the last days."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from backup.report.calendar import COUNT, REASON, Day, Days

LAST = date(2026, 11, 25)


def report(day: str, *domains: Any) -> Any:
    return {"started": f"{day}T02:00:00.000+00:00", "domains": list(domains)}


def result(name: str = "web", status: str = "saved", taken: str = "", **changes: Any) -> dict[str, Any]:
    consistency = "filesystem" if status == "saved" else None
    values = {"uuid": f"uuid-of-{name}", "reason": "", "consistency": consistency, **changes}
    return {"name": name, "status": status, "taken": taken or None, **values}


FAILED = result(status="failed", reason="no answer")
SKIPPED = result(status="skipped", reason="saved already")

SAVED_BUT = result(status="failed", consistency="paused", reason="saved, but")


def rows_of(*reports: Any) -> Any:
    """Give the rows of these, newest first."""
    days = Days(LAST)
    for one in reports:
        days.add(one)
    return days.rows()


def today(*results: Any) -> Day:
    (row,) = rows_of(*(report("2026-11-25", one) for one in results), report("2026-11-24", result()))
    day: Day = row.days[-1]
    return day


@pytest.mark.parametrize(
    ("results", "kind", "failed", "text"),
    [
        ([result()], "filesystem", False, "saved, filesystem"),
        ([result(consistency="crash"), result()], "crash", False, "saved, crash; saved, filesystem"),
        ([FAILED], "failed", True, "failed: no answer"),
        ([FAILED, result()], "filesystem", True, "failed: no answer; saved, filesystem"),
        ([result(), FAILED], "filesystem", True, "saved, filesystem; failed: no answer"),
        ([SKIPPED, result()], "filesystem", False, "skipped: saved already; saved, filesystem"),
        ([SKIPPED, FAILED], "failed", True, "skipped: saved already; failed: no answer"),
        ([SKIPPED], "skipped", False, "skipped: saved already"),
        ([SAVED_BUT], "paused", True, "failed, paused: saved, but"),
        ([], "", False, ""),
    ],
)
def test_a_day_shows_its_newest_restore_point_and_its_failures(
    results: Any, kind: str, failed: bool, text: str
) -> None:
    day = today(*results)
    assert day == Day(kind, failed, day.text)
    assert day.text.replace("02:00 ", "") == text


def test_many_results_and_long_reasons_are_cut() -> None:
    text = today(*[result(status="failed", reason="x" * 5000)] * 24).text
    assert text.endswith("…; 20 more")
    assert len(text) < 5 * (REASON + 20)


def test_a_restore_point_belongs_to_the_day_that_it_was_taken_on() -> None:
    (row,) = rows_of(report("2026-11-23", result(taken="2026-11-24T00:10:00.000+00:00")))
    assert [day.kind for day in row.days[-3:]] == ["", "filesystem", ""]


def test_older_days_are_not_shown() -> None:
    (row,) = rows_of(report("2026-10-27", result()), report("2026-10-26", result("gone")))
    assert (row.name, len(row.days), row.days[0].kind) == ("web", COUNT, "filesystem")


def test_a_domain_is_identified_by_its_uuid_and_shown_with_its_newest_name() -> None:
    (row,) = rows_of(
        report("2026-11-25", result("new", uuid="1")), report("2026-11-24", result("old", uuid="1"))
    )
    assert (row.name, [day.kind for day in row.days[-2:]]) == ("new", ["filesystem"] * 2)


def test_a_run_of_named_domains_does_not_change_the_others() -> None:
    rows = rows_of(report("2026-11-25", result("web")), report("2026-11-24", result("web"), result("db")))
    assert [(row.name, row.days[-1].kind, row.ends_badly) for row in rows] == [
        ("db", "", False),
        ("web", "filesystem", False),
    ]


def test_domains_that_failed_last_come_first_and_skipped_domains_are_left_out() -> None:
    results = [result("a"), result("Z", status="failed"), result("B"), result("out", status="skipped")]
    assert [row.name for row in rows_of(report("2026-11-25", *results))] == ["Z", "a", "B"]


def test_the_months_span_their_days() -> None:
    days = Days(LAST)
    assert (days.dates[0], days.dates[-1]) == (date(2026, 10, 27), LAST)
    assert list(days.months) == [("October", 5), ("November", 25)]
