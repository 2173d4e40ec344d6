"""The checker of tests/chaos finds what is broken, and nothing else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.chaos.agreement import violations
from tests.chaos.contents import forget_old
from tests.chaos.faults import HAPPENINGS
from tests.chaos.nodes import Running
from tests.chaos.plan import KINDS, Order, drawn
from tests.chaos.records import gap
from tests.chaos.repository import Point
from tests.chaos.stillness import unexcused


def _lines(*records: str) -> list[str]:
    return [*records, ""]


def test_room_is_made_without_the_newest_restore_point_of_a_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    image = ("vms/solo", 1, False)
    points = [
        Point("solo", "1", "uuid", "manifest1", images={"vda": ("image1", *image)}),
        Point("solo", "2", "uuid", "manifest2", images={"vda": ("image2", *image)}),
        Point("solo", "3", "uuid", images={"vda": ("image3", *image)}),
    ]
    names = ("image1", "manifest1", "image2", "manifest2", "image3")
    repository = Mock(points=lambda: points, snapshots=lambda: [{"id": name} for name in names])
    world = Mock(of_repository={repository.place: {"manifest1": "1", "manifest2": "2"}})
    monkeypatch.setattr("shutil.disk_usage", lambda _: Mock(used=6, total=10))
    forget_old(world, repository)
    repository.restic.assert_called_with("forget", "--prune", "--quiet", "image1", "manifest1", "image3")
    assert world.of_repository == {repository.place: {"manifest2": "2"}}


def test_records_without_a_gap_are_unbroken() -> None:
    assert gap(_lines("b000000", "0000001", "0000002")) == ""


def test_a_boot_may_lack_the_newest_record_before_it() -> None:
    assert gap(_lines("b000000", "0000001", "b000002", "0000003")) == ""
    assert gap(_lines("b000000", "0000001", "b000001", "0000002")) == ""


@pytest.mark.parametrize(
    "records",
    [
        ["b000000", "0000001", "0000003"],
        ["b000000", "0000001", "0000001"],
        ["b000000", "0000001", "b000003", "0000004"],
        ["b000000", "\0\0\0\0\0\0\0", "0000002"],
        ["b000000", "00001"],
    ],
)
def test_a_record_that_is_missing_or_damaged_is_found(records: list[str]) -> None:
    assert gap(_lines(*records)) != ""


def test_records_that_end_within_a_line_are_damaged() -> None:
    assert gap(["b000000", "0000001", "00000"]) != ""
    assert gap([]) != ""


def test_a_guest_may_stop_for_as_long_as_a_fault_excuses_it() -> None:
    assert unexcused(10, 40, []) == 30
    assert unexcused(10, 40, [(0, 15), (12, 38)]) == 2
    assert unexcused(10, 40, [(20, 30)]) == 10
    assert unexcused(10, 40, [(50, 60)]) == 30
    assert unexcused(10, 40, [(10, 40)]) == 0


def test_the_seed_and_the_number_give_the_same_round_again() -> None:
    assert drawn(7, 3) == drawn(7, 3)
    assert drawn(7, 3) != drawn(7, 4)


def test_every_fault_that_is_drawn_can_happen() -> None:
    assert {*KINDS} == {*HAPPENINGS}


@pytest.mark.parametrize(("undefined", "found"), [({"ice"}, 0), ({"cold"}, 1), (set(), 1)])
def test_a_domain_that_is_named_and_unknown_was_undefined_in_this_round(
    tmp_path: Path, undefined: set[str], found: int
) -> None:
    (tmp_path / "0.stderr").write_text("there is no domain 'ice'\n")
    found_now = [one.invariant for one in violations(_backup(tmp_path, 2), [], undefined)]
    assert found_now[:1] == ["a known exit code"] * found


def test_a_command_that_names_an_undefined_domain_must_not_show_a_bug(tmp_path: Path) -> None:
    words = "there is no domain 'ice'\nTraceback (most recent call last):\n"
    (tmp_path / "0.stderr").write_text(words)
    assert [one.invariant for one in violations(_backup(tmp_path, 2), [], {"ice"})] == ["no bug shows"]


@pytest.mark.parametrize(
    ("undefined", "reason", "found"),
    [
        ({"ice"}, "the domain is no longer defined", 0),
        ({"cold"}, "the domain is no longer defined", 1),
        ({"ice"}, "another node saved it", 1),
    ],
)
def test_a_run_is_good_if_it_skipped_only_what_was_undefined(
    tmp_path: Path, undefined: set[str], reason: str, found: int
) -> None:
    (tmp_path / "0.stderr").write_text(f"ice: skipped: {reason}\n")
    domain = {"name": "ice", "status": "skipped", "reason": reason, "selected": True, "images": []}
    report = {"run": "1", "exit_code": 0, "errors": [], "domains": [domain]}
    (tmp_path / "0.report").write_text(json.dumps(report))
    assert len([*violations(_backup(tmp_path, 0), [], undefined)]) == found


def _backup(directory: Path, code: int) -> Running:
    """A backup that has ended, with its files in the directory."""
    order = Order("node-b", ("backup", "ice"), 0, {})
    return Running(order, Mock(), Mock(spec=subprocess.Popen, returncode=code), directory / "0")
