"""backup/report/timeline.py: a run as a picture."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from backup.report.timeline import CROWDED, Tick, fitting, run_timeline

from ..past_reports import NOW, names, night


def job(name: str, lane: int, begin: float, end: float, **changes: Any) -> dict[str, Any]:
    timeline = {"lane": lane, "started": at(begin), "finished": at(end), "phases": changes.pop("phases", [])}
    known = {"status": "saved", "consistency": "filesystem", "frozen_at": None, "frozen_seconds": 0}
    return {"name": name, "timeline": timeline, **known, **changes}


def at(seconds: float) -> str:
    return (NOW + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def run_of(*jobs: Any, seconds: float = 100) -> Any:
    return {"started": at(0), "finished": at(seconds), "domains": [*jobs, {"timeline": None}]}


def test_each_worker_is_a_lane_and_each_job_a_bar_in_percent_of_the_run() -> None:
    shown = run_timeline(run_of(job("c", 2, 30, 100), job("b", 1, 50, 90), job("a", 1, 10, 50)))
    assert shown
    assert [(lane.number, [bar.label for bar in lane.bars], lane.busy) for lane in shown.lanes] == [
        (1, ["a", "b"], 80),
        (2, ["c"], 70),
    ]
    assert [(bar.place.x, bar.place.width) for bar in shown.lanes[0].bars] == [(10, 40), (50, 40)]


def test_a_phase_ends_where_the_next_begins_and_preparing_is_the_bar_itself() -> None:
    phases = [("preparing", 10), ("making snapshots", 20), ("streaming", 25), ("tidying up", 90)]
    members = [{"phase": phase, "started": at(begin)} for phase, begin in phases]
    shown = run_timeline(run_of(job("web", 1, 10, 95, phases=members)))
    assert shown
    (bar,) = shown.lanes[0].bars
    assert [(one.kind, one.x, one.width) for one in bar.phases] == [
        ("snapshot", 20, 5),
        ("stream", 25, 65),
        ("tidy", 90, 5),
    ]
    assert bar.label_x == 25, "where there is room"


def test_the_time_that_a_guest_is_quiesced_is_marked_however_short() -> None:
    jobs = [job("web", 1, 0, 100, frozen_at=at(50), frozen_seconds=0.3)]
    jobs += [job("db", 2, 0, 100, frozen_at=at(50), frozen_seconds=0), job("old", 3, 0, 100)]
    shown = run_timeline(run_of(*jobs))
    assert shown
    web, db, old = (lane.bars[0] for lane in shown.lanes)
    assert web.frozen
    assert (web.frozen.x, web.frozen.width) == (50, 0.3)
    assert web.text == (
        "web: saved, filesystem; 06:30:00 to 06:31:40 UTC, 1 min 40 s; "
        "frozen or paused at 06:30:50 for 0.30 s"
    )
    assert db.frozen
    assert db.frozen.width > 0, "a width of nothing would not be drawn"
    assert old.frozen is None


@pytest.mark.parametrize(
    ("seconds", "count", "first"),
    [
        (0.5, 1, Tick(0, "06:30:00")),
        (9, 10, Tick(0, "06:30:00")),
        (95, 10, Tick(0, "06:30:00")),
        (3600, 7, Tick(0, "06:30")),
        (86400, 8, Tick(10.417, "09:00")),
        (10 * 86400, 10, Tick(7.292, "00:00")),
    ],
)
def test_the_axis_has_a_few_round_times(seconds: float, count: int, first: Tick) -> None:
    shown = run_timeline(run_of(job("web", 1, 0, seconds), seconds=seconds))
    assert shown
    assert (len(shown.ticks), shown.ticks[0]) == (count, first)
    assert all(0 <= tick.x <= 100 for tick in shown.ticks)


@pytest.mark.parametrize(
    ("text", "pixels", "shown"),
    [
        ("web01", 35, "web01"),
        ("web01", 34, "web…"),
        ("web01", 27, ""),
        ("web", 21, "web"),
        ("データベース", 84, "データベース"),
        ("データベース", 60, "データ…"),
        ("", 0, ""),
        ("web", -3, ""),
    ],
)
def test_a_label_is_cut_to_its_bar_and_left_out_if_too_short(text: str, pixels: float, shown: str) -> None:
    assert fitting(text, pixels) == shown


def test_bars_stay_within_the_run_when_the_clock_was_set() -> None:
    shown = run_timeline(run_of(job("web", 1, -500, 900, frozen_at=at(-700), frozen_seconds=1), seconds=-50))
    assert shown
    spans = [shown.lanes[0].bars[0].place, shown.lanes[0].bars[0].frozen]
    assert all(span and 0 <= span.x <= span.x + span.width <= 100.01 for span in spans)


def test_marks_are_thin_where_there_are_many() -> None:
    few, many = run_timeline(night(names(CROWDED))), run_timeline(night(names(CROWDED + 1)))
    assert few
    assert many
    assert (few.crowded, many.crowded) == (False, True)


def test_a_run_without_jobs_has_no_timeline() -> None:
    assert run_timeline(run_of()) is None
    assert datetime.fromisoformat(run_of()["started"]) == NOW
