"""outputs/restic_repository/snapshots.py: restore points are recognized by tags alone."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from backup.restore_point.find import find_point
from backup.stored import PointId, StoredImage, StoredPoint
from outputs.restic_repository.snapshots import encoded, incomplete, point_id, stored_points

from ..samples import OTHER_UUID, RUN, TAKEN, UUID

OLDER_RUN = "20240101T000000Z-aaaa"
SECOND = TAKEN.replace(microsecond=0)


def listed(identity: str, uuid: str, run: str, *tags: str, host: str = "web") -> dict[str, Any]:
    """Return a snapshot as restic lists it."""
    common = ("virt-rbd-backup", f"run={run}", f"uuid={uuid}", "consistency=paused")
    taken = "2024-02-03T04:05:06Z" if run == RUN else "2024-01-01T00:00:00.123456789Z"
    return {"id": identity, "hostname": host, "time": taken, "tags": [*common, *tags]}


def test_a_restore_point_is_its_manifest_and_its_images_and_the_oldest_comes_first() -> None:
    name = "ssd/tests/web root, 100%"
    newer, older = stored_points(
        [
            listed("1", UUID, RUN, "disk=vda", encoded(f"image={name}"), "size=4096"),
            listed("2", UUID, OLDER_RUN, "definition"),
            {**listed("3", UUID, RUN, "disk=vdb", "image=vms/b"), "original": "0"},
            listed("4", UUID, RUN, "definition", "node=node1"),
        ]
    )[::-1]
    images = (StoredImage("vda", name, 4096, "1"), StoredImage("vdb", "vms/b", None, "3", "0"))
    assert newer == StoredPoint(PointId(RUN, UUID), "web", SECOND, "paused", "node1", images, "4")
    assert (older.id.run, older.images, older.manifest_id) == (OLDER_RUN, (), "2")


def test_a_restore_point_that_a_wrong_clock_made_is_never_the_newest() -> None:
    future = f"{datetime.now(timezone.utc) + timedelta(days=365):%Y-%m-%dT%H:%M:%SZ}"
    wrong = {**listed("1", UUID, "20990101T000000Z-aaaa", "definition"), "time": future}
    points = stored_points([listed("2", UUID, RUN, "definition"), wrong])
    assert [point.manifest_id for point in points] == ["1", "2"]
    assert find_point(points, "web", "latest").manifest_id == "2"


def test_a_manifest_may_be_in_the_snapshot_of_the_segments() -> None:
    (point,) = stored_points([listed("1", UUID, RUN, "segments.vda=4096 vms/a", "definition", "node=node1")])
    assert (point.manifest_id, point.node) == ("1", "node1")
    assert point.images == (StoredImage("vda", "vms/a", 4096, "1"),)


def test_what_rewrite_or_repair_made_of_a_snapshot_that_is_still_there_does_not_count() -> None:
    manifest, image = listed("1", UUID, RUN, "definition"), listed("2", UUID, RUN, "disk=vda", "image=vms/a")
    rewritten = {**manifest, "id": "3", "original": "1", "tags": [*manifest["tags"], "rewrite"]}
    repaired = {**image, "id": "4", "original": "2", "tags": [*image["tags"], "repaired"]}
    for order in ([manifest, image, rewritten, repaired], [repaired, rewritten, image, manifest]):
        (point,) = stored_points(order)
        assert (point.manifest_id, [one.restore_id for one in point.images]) == ("1", ["2"])
    (point,) = stored_points([rewritten, repaired])  # with --forget, or the originals were forgotten since
    assert (point.manifest_id, [one.restore_id for one in point.images]) == ("3", ["4"])
    tagged, both = {**image, "original": "0"}, {**repaired, "original": "0"}
    (point,) = stored_points([manifest, both, tagged])
    assert [one.restore_id for one in point.images] == ["2"]


def test_each_attempt_of_a_run_is_a_restore_point_of_its_own() -> None:
    first, second = sorted(
        stored_points(
            [
                listed("1", UUID, RUN, "disk=vda"),
                listed("2", UUID, RUN, "attempt=2", "disk=vda"),
                listed("3", UUID, RUN, "attempt=2", "definition"),
            ]
        ),
        key=lambda point: point.id.attempt,
    )
    assert (first.id, first.manifest_id) == (PointId(RUN, UUID), "")
    assert (second.id, second.manifest_id) == (PointId(RUN, UUID, 2), "3")
    assert [image.restore_id for image in second.images] == ["2"]


def test_the_places_of_the_locks_are_listed_and_older_restore_points_have_none() -> None:
    places = ("lock=fsid/vms/", encoded("lock=fsid/a,b/c"))
    (point,) = stored_points([listed("1", UUID, RUN, *places), listed("2", UUID, RUN, "definition", *places)])
    assert point.locks == ("fsid/a,b/c", "fsid/vms/")
    assert stored_points([listed("1", UUID, RUN)])[0].locks == ()


@pytest.mark.parametrize(
    "tag", ["segments.vda=", "segments.vda=many vms/a", "segments.vda=\u00b2 vms/a", "size=\u00b2"]
)
def test_a_tag_that_an_admin_made_by_hand_is_ignored(tag: str) -> None:
    (point,) = stored_points([listed("1", UUID, RUN, "disk=vda", "image=vms/a", tag)])
    assert point.images == (StoredImage("vda", "vms/a", None, "1"),)
    (point,) = stored_points([listed("1", UUID, RUN, "segments.vdb=4096 vms/b", tag)])
    assert point.images == (StoredImage("vdb", "vms/b", 4096, "1"),)


@pytest.mark.parametrize("attempt", ["", "0", "x", "-1"])
def test_an_attempt_without_a_number_is_the_first(attempt: str) -> None:
    assert point_id(listed("1", UUID, RUN, f"attempt={attempt}")) == PointId(RUN, UUID)


def test_images_without_a_manifest_are_an_incomplete_restore_point() -> None:
    snapshots = [
        listed("1", UUID, RUN, "disk=vda"),
        listed("2", UUID, RUN, "definition"),
        listed("3", OTHER_UUID, RUN, "disk=vda", host="db"),
    ]
    assert incomplete(snapshots) == {PointId(RUN, OTHER_UUID)}
    assert [point.manifest_id for point in stored_points(snapshots)] == ["2", ""]
    assert incomplete([]) == set()
