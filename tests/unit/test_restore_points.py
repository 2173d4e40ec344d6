"""backup/restore_points.py: which restore points are meant, and how they are shown."""

from __future__ import annotations

import pytest

from backup.errors import ConfigError
from backup.model import HeldImage, HeldPoint, PointId
from backup.restore_points import of_domains, points_json, points_table

from .samples import MIB, OTHER_UUID, RUN, TAKEN, UUID

IMAGES = (HeldImage("vda", "vms/web-root", 16 * MIB, "0123"), HeldImage("vdb", "vms/web-data", None, "4567"))
WEB = HeldPoint(PointId(RUN, UUID), "web", TAKEN, "filesystem", "node1", IMAGES, "89ab")
HALF = HeldPoint(PointId(RUN, OTHER_UUID), "db01", TAKEN, "paused", "", IMAGES[:1], "")
MARK = ("incomplete:", "does", "not", "count")
BARE = HeldPoint(PointId(RUN, OTHER_UUID), "db01", TAKEN, "offline", "node1", (), "cdef")


@pytest.mark.parametrize(
    ("names", "chosen"), [([], [WEB, HALF]), (["web"], [WEB]), (["db*"], [HALF]), ([UUID], [WEB])]
)
def test_domains_are_named_by_name_pattern_or_uuid(names: list[str], chosen: list[HeldPoint]) -> None:
    assert of_domains([WEB, HALF], names) == chosen


@pytest.mark.parametrize(
    ("name", "hint"), [("wbe", "did you mean web?"), ("x9", "see `main.py restore-points`")]
)
def test_a_name_that_no_restore_point_has_is_told_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        of_domains([WEB, HALF], ["web", name])
    (error,) = caught.value.errors
    assert error.message == f"there is no restore point of a domain {name!r}"
    assert error.hint.startswith(hint)


def test_the_table_has_a_row_per_disk_and_marks_what_does_not_count() -> None:
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


def test_programs_get_the_same_with_sizes_in_bytes() -> None:
    web, half = points_json([WEB, HALF])
    assert (web["run"], web["uuid"], web["domain"], web["complete"]) == (RUN, UUID, "web", True)
    assert web["images"] == [
        {"target": "vda", "image": "vms/web-root", "size": 16 * MIB, "restore_id": "0123"},
        {"target": "vdb", "image": "vms/web-data", "size": None, "restore_id": "4567"},
    ]
    assert (half["complete"], half["manifest_id"]) == (False, "")
