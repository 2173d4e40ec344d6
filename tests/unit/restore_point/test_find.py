"""backup/restore_point/find.py: which restore points are selected, and how they are listed."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from backup.errors import ConfigError
from backup.job_result import JobResult, Status
from backup.restore_point.find import current_images, find_point, missing, points_of_domains
from backup.stored import PointId, SavedImage, StoredImage, StoredPoint
from backup.terminal.tables import points_json, points_table

from ..raising import raises
from ..samples import LAYOUT, MIB, OTHER_UUID, RUN, TAKEN, UUID

IMAGES = (
    StoredImage("vda", "vms/web-root", 16 * MIB, "0123"),
    StoredImage("vdb", "vms/web-data", None, "4567"),
)
WEB = StoredPoint(PointId(RUN, UUID), "web", TAKEN, "filesystem", "node1", IMAGES, "89ab")
HALF = StoredPoint(PointId(RUN, OTHER_UUID), "db01", TAKEN, "paused", "", IMAGES[:1], "")
MARK = ("incomplete:", "not", "restorable")
BARE = StoredPoint(PointId(RUN, OTHER_UUID), "db01", TAKEN, "offline", "node1", (), "cdef")


@pytest.mark.parametrize(
    ("names", "meant"), [([], [WEB, HALF]), (["web"], [WEB]), (["db*"], [HALF]), ([UUID], [WEB])]
)
def test_domains_are_selected_by_name_pattern_or_uuid(names: list[str], meant: list[StoredPoint]) -> None:
    assert points_of_domains([WEB, HALF], names) == meant


def test_a_name_that_a_domain_has_is_no_pattern() -> None:
    """`prune 'web[1]'` must not remove web1's restore points."""
    other = replace(HALF, domain="web[1]")
    points = [replace(WEB, domain="web1"), other]
    assert points_of_domains(points, ["web[1]"]) == [other]
    assert points_of_domains(points[:1], ["web[1]"]) == points[:1]
    assert points_of_domains(points, ["web*"]) == points


@pytest.mark.parametrize(
    ("name", "hint"), [("wbe", "did you mean web?"), ("x9", "`main.py restore-points` lists all")]
)
def test_an_unknown_name_is_reported_with_the_most_similar_one(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        points_of_domains([WEB, HALF], ["web", name])
    (error,) = caught.value.errors
    assert error.message == f"there is no restore point of a domain {name!r}"
    assert error.hint.startswith(hint)


def test_the_table_has_a_row_per_disk_and_marks_incomplete_restore_points() -> None:
    head, *rows = (line.split() for line in points_table([WEB, HALF, BARE]).splitlines())
    assert head[0] == "domain"
    taken = ["2024-02-03", "04:05:06"]
    assert rows == [
        ["web", *taken, RUN, "filesystem", "node1", "vda", "vms/web-root", "16.0", "MiB"],
        ["vdb", "vms/web-data", "-"],
        ["db01", *taken, RUN, "paused", "-", "vda", "vms/web-root", "16.0", "MiB", *MARK],
        ["db01", *taken, RUN, "offline", "node1", "-", "-", "-"],
    ]
    assert points_table([]) == "no restore points\n"
    late = replace(WEB, taken=datetime.now(timezone.utc) + timedelta(days=2))
    assert "  from the future: a clock was wrong\n" in points_table([late])


def test_the_json_has_the_same_with_sizes_in_bytes() -> None:
    web, half = points_json([WEB, HALF])
    assert (web["run"], web["uuid"], web["domain"], web["complete"]) == (RUN, UUID, "web", True)
    assert web["images"] == [
        {"target": "vda", "image": "vms/web-root", "size": 16 * MIB, "restore_id": "0123"},
        {"target": "vdb", "image": "vms/web-data", "size": None, "restore_id": "4567"},
    ]
    assert (half["complete"], half["manifest_id"]) == (False, "")


LATER = replace(WEB, id=PointId("20240205T040506Z-efgh", UUID), taken=TAKEN + timedelta(days=2))
NEWEST = replace(LATER, id=PointId("20240206T040506Z-half", UUID), manifest_id="")


@pytest.mark.parametrize(
    ("at", "meant"),
    [
        ("latest", LATER),
        (RUN, WEB),
        ("20240205", LATER),
        ("2024-02-03", WEB),
        ("2024-02-04T12:00", WEB),
        ("2024-02-03 04:05:06", WEB),
        ("2024-02-05T04:05:06Z", LATER),
        ("2030-01-01", LATER),
        ("9999-12-31", LATER),
        ("9999-12-31T23:59:59Z", LATER),
    ],
)
def test_a_restore_point_is_selected_by_run_or_time(at: str, meant: StoredPoint) -> None:
    for name in ("web", UUID):
        assert find_point([WEB, HALF, LATER, NEWEST], name, at) == meant


@pytest.mark.parametrize(
    ("name", "at", "words"),
    [
        ("web", "2024-02-02", "no complete restore point of web matches --at '2024-02-02'"),
        ("web", "2024-02-03T04:04", "no complete restore point"),
        ("web", "20990101", "no complete restore point"),
        ("web", "20240206", "run 20240206T040506Z-half is incomplete: it has no manifest"),
        ("db01", "latest", "no complete restore point"),
        ("wbe", "latest", "no restore point of a domain 'wbe'"),
    ],
)
def test_a_selection_without_a_restore_point_is_an_error(name: str, at: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_point([WEB, HALF, LATER, NEWEST], name, at)


def saved(target: str, restore_id: str, size: int = MIB) -> SavedImage:
    return SavedImage(target, f"vms/{target}", size, 0, 0, 0.0, restore_id, LAYOUT)


def test_images_have_their_current_ids() -> None:
    point = replace(
        WEB,
        images=(
            StoredImage("vda", "vms/vda", MIB, "aaaa5555"),  # of an attempt that failed
            StoredImage("vda", "vms/vda", MIB, "bbbb5555", "0123abcd"),  # tagged since
            StoredImage("vdb", "vms/vdb", MIB, "4567abcd"),
        ),
    )
    images = (saved("vda", "0123abcd"), saved("vdb", "4567"), saved("vdc", "", size=0))
    assert [image.restore_id for image in current_images(images, point)] == ["bbbb5555", "4567abcd", ""]


def test_only_the_missing_image_of_a_restore_point_is_an_error() -> None:
    point = replace(WEB, images=(StoredImage("vda", "vms/vda", MIB, "aaaa"), *IMAGES[1:]))
    with raises(f"the restore point of web from run {RUN} lacks vda"):
        current_images((saved("vda", "0123"), saved("vdb", "4567")), point)
    assert current_images((saved("vdb", "4567"),), point) == (saved("vdb", "4567"),)


def test_images_that_are_stored_with_their_manifest_are_found_by_their_targets() -> None:
    images = (StoredImage("vda", "vms/a", 1, "0123"), StoredImage("vdb", "vms/b", 1, "0123"))
    point = replace(WEB, images=images)
    found = current_images((saved("vdb", ""), saved("vda", "")), point)
    assert [(one.target, one.restore_id) for one in found] == [("vdb", "0123"), ("vda", "0123")]
    with raises(f"the restore point of web from run {RUN} lacks vdc"):
        current_images((saved("vdc", ""),), point)


def test_a_name_that_two_domains_had_is_an_error() -> None:
    other = replace(LATER, id=PointId(LATER.id.run, OTHER_UUID))
    with pytest.raises(ConfigError) as caught:
        find_point([WEB, other], "web", "latest")
    assert f"{OTHER_UUID} (until 2024-02-05 04:05)" in caught.value.errors[0].hint
    assert find_point([WEB, other], OTHER_UUID, "latest") == other


def test_of_two_attempts_of_a_run_the_complete_one_is_selected() -> None:
    failed = replace(WEB, manifest_id="", taken=TAKEN + timedelta(hours=1))
    second = replace(WEB, id=PointId(RUN, UUID, 2), manifest_id="second")
    for points in ([failed, second], [second, failed]):
        assert find_point(points, "web", RUN) is second
    with pytest.raises(ConfigError, match="is incomplete"):
        find_point([failed], "web", RUN)


def saved_image(restore_id: str, target: str = "vda", size: int = MIB) -> SavedImage:
    return SavedImage(target, f"vms/{target}", size, 0, 0, 1.0, restore_id, LAYOUT)


def test_what_a_run_saved_is_compared_with_the_listing() -> None:
    stored = (
        StoredImage("vda", "vms/vda", MIB, "0123456789"),
        StoredImage("vdb", "vms/vdb", MIB, "new", "original"),
    )
    there = replace(WEB, images=stored)
    images = (saved_image("01234567"), saved_image("original", "vdb"), saved_image("", "vdc", 0))
    result = JobResult("web", UUID, Status.SAVED, images=images)
    other = replace(there, id=PointId("20200101T000000Z-othr", UUID))
    assert missing([other, there], RUN, result) == ()
    assert missing([replace(there, id=PointId(RUN, UUID, 2))], RUN, result) == ()
    assert missing([other, replace(there, manifest_id="")], RUN, result) == ("the manifest",)
    assert missing([replace(there, images=stored[1:])], RUN, result) == ("vda (vms/vda)",)
