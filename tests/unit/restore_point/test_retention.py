"""backup/restore_point/retention.py: what is kept, and never less than the newest complete restore point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from backup.restore_point.retention import Retention
from backup.stored import PointId, StoredPoint

from ..samples import OTHER_UUID, UUID, held_point

NOW = datetime(2024, 2, 20, tzinfo=timezone.utc)


def points(*ages: float, uuid: str = UUID) -> list[StoredPoint]:
    """Give complete points of these ages in days; their runs are named for them."""
    return [
        replace(
            held_point(uuid=uuid), id=PointId(str(age), uuid), taken=NOW - timedelta(age), manifest_id="m"
        )
        for age in ages
    ]


def gone(retention: Retention, known: Sequence[StoredPoint]) -> list[str]:
    return [point.id.run for point in retention.expired(known, NOW)]


@pytest.mark.parametrize(
    ("last", "days", "expired"),
    [
        (0, 0, []),
        (1, 0, ["40", "20", "3", "2"]),
        (3, 0, ["40", "20"]),
        (9, 0, []),
        (0, 10, ["40", "20"]),
        (0, 1, ["40", "20", "3", "2"]),
        (4, 10, ["40"]),
        (1, 10, ["40", "20"]),
    ],
)
def test_a_point_is_kept_if_one_limit_keeps_it(last: int, days: int, expired: list[str]) -> None:
    assert gone(Retention(last, days), points(40, 20, 3, 2, 1)) == expired


@pytest.mark.parametrize("retention", [Retention(1, 0), Retention(0, 1), Retention(1, 1)])
def test_the_newest_complete_one_is_never_removed_however_old(retention: Retention) -> None:
    incomplete = replace(points(400)[0], id=PointId("failed", UUID), manifest_id="")
    assert gone(retention, [*points(900, 500), incomplete]) == ["900"]
    assert gone(retention, [incomplete]) == []


@pytest.mark.parametrize("retention", [Retention(0, 0), Retention(9, 0), Retention(0, 900)])
def test_one_whose_removal_was_interrupted_goes_in_any_case(retention: Retention) -> None:
    half_gone = replace(points(3)[0], manifest_id="", removed=True)
    assert gone(retention, [half_gone, *points(2, 1)]) == ["3"]
    assert gone(retention, [half_gone]) == ["3"], "also the last one of its domain: it does not count"


def test_each_domain_has_its_own_points() -> None:
    assert gone(Retention(1, 0), [*points(5, uuid=OTHER_UUID), *points(4), *points(3)]) == ["4"]


def test_a_point_whose_clock_was_wrong_does_not_push_out_the_newest_one() -> None:
    listed = [*points(-700), *points(9, 1)]  # those of the future are listed first
    assert gone(Retention(2, 0), listed) == ["-700"]
    assert gone(Retention(0, 5), listed) == ["9"]


@pytest.mark.parametrize(
    ("ages", "doubted"),
    [
        ([400, 399, 398], True),  # a clock that is a year ahead
        ([399, 398, -300], True),  # the same, and what a clock dated into the future is no proof
        ([400, 399, 5], False),  # whatever was saved lately proves the clock right
        ([400], False),
        ([12, 11], True),
        ([63, 42, 21], False),  # runs are always that far apart
        ([], False),
    ],
)
def test_a_clock_by_which_all_is_too_old_is_doubted(ages: list[float], doubted: bool) -> None:
    assert Retention(0, 10).doubts_clock(points(*ages), NOW) == doubted
    assert not Retention(1, 0).doubts_clock(points(*ages), NOW)


def test_the_domains_of_one_run_prove_no_pauses_between_runs() -> None:
    known = [*points(400, 399), *points(400, 399, uuid=OTHER_UUID)]
    assert Retention(0, 10).doubts_clock(known, NOW)
    assert not Retention(0, 10).doubts_clock([*points(400), *points(400, uuid=OTHER_UUID)], NOW)


def test_a_pause_of_long_ago_does_not_hide_a_clock_that_is_ahead() -> None:
    assert Retention(0, 10).doubts_clock(points(900, *range(412, 400, -1)), NOW)
