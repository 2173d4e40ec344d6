"""The checker of tests/chaos reads restore points that are plain images and files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tests.chaos import contents
from tests.chaos.own_points import KEEP_LAST, SavedDirectory, SavedPool
from tests.chaos.repository import Point
from tests.lab import LabError

TAKEN = datetime(2026, 1, 1, tzinfo=timezone.utc)
UUID = "11111111-2222-3333-4444-555555555555"
RUNS = [f"2026010{day}T000000Z-abcd" for day in range(1, 9)]


def packed(name: str = "ice") -> bytes:
    image = {"target": "vda", "image": f"vms/{name}", "size": 5}
    manifest = {"domain": {"name": name}, "consistency": "offline", "host": "node-a", "images": [image]}
    content = json.dumps({**manifest, "taken": TAKEN.isoformat()}).encode()
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            entry = tarfile.TarInfo("manifest.json")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        return file.getvalue()


def put(path: Path, content: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def directory(tmp_path: Path) -> SavedDirectory:
    """A directory with a restore point, one whose removal was interrupted, and what stays of a third."""
    put(tmp_path / "saved" / UUID / ".lock")
    for name in ("definition.tar", "point.json", "vda.qcow2"):
        put(tmp_path / "saved" / UUID / RUNS[2] / name, packed() if name.endswith(".tar") else b"")
    put(tmp_path / "saved" / UUID / f"{RUNS[1]}.2" / "point.json")
    put(tmp_path / "saved" / UUID / RUNS[0] / "vda.qcow2")
    return SavedDirectory(tmp_path / "saved", tmp_path)


def test_restore_points_of_a_directory_are_those_with_a_manifest(directory: SavedDirectory) -> None:
    incomplete, complete = directory.points()
    assert (incomplete.run, incomplete.attempt, incomplete.manifest) == (RUNS[1], 2, "")
    assert (complete.domain, complete.consistency, complete.node) == ("ice", "offline", "node-a")
    assert complete.images == {"vda": (f"{UUID}/{RUNS[2]}/vda.qcow2", "vms/ice", 5, False)}
    directory.require_manifest(complete)
    assert [*directory.left()] == []


@pytest.mark.parametrize("name", [f".{RUNS[3]}.partial", f".{RUNS[3]}.2.partial"])
def test_what_a_run_has_not_finished_is_no_restore_point(directory: SavedDirectory, name: str) -> None:
    put(directory.place / UUID / name / "definition.tar", packed())
    assert [one.run for one in directory.points() if not one.manifest] == [RUNS[3], RUNS[1]]


@pytest.mark.parametrize("name", [f"{RUNS[2]}/.vda.qcow2.abcdefgh", "anything"])
def test_files_that_are_none_of_a_restore_point_are_found(directory: SavedDirectory, name: str) -> None:
    put(directory.place / UUID / name)
    assert [*directory.left()] == [str(directory.place / UUID / name)]


def test_a_damaged_manifest_is_found(directory: SavedDirectory) -> None:
    put(directory.place / UUID / RUNS[2] / "definition.tar", b"no tar")
    point = directory.points()[-1]
    assert point.manifest
    with pytest.raises(LabError, match="damaged"):
        directory.require_manifest(point)


def _pool(tmp_path: Path, disk: Sequence[str], definition: Sequence[str], notes: bytes = b"") -> SavedPool:
    snapshots = {f"virt-rbd-backup.{UUID}.vda": disk, f"virt-rbd-backup.{UUID}.definition": definition}

    def rbd(*words: str) -> bytes:
        if words[0] == "ls":
            return json.dumps([*snapshots]).encode()
        if words[0] == "snap":
            return json.dumps([{"name": one} for one in snapshots[Path(words[-1]).name]]).encode()
        return packed() if words[0] == "export" else notes

    return SavedPool(Path("ssd/saved"), tmp_path, Mock(rbd=rbd))


def test_restore_points_of_a_pool_are_those_with_a_snapshot_of_the_definition(tmp_path: Path) -> None:
    pool = _pool(tmp_path, [RUNS[0], f"{RUNS[1]}.2"], [RUNS[0]])
    complete, incomplete = pool.points()
    assert (complete.run, complete.domain) == (RUNS[0], "ice")
    assert complete.images["vda"][0] == f"virt-rbd-backup.{UUID}.vda@{RUNS[0]}"
    assert (incomplete.run, incomplete.attempt, incomplete.manifest) == (RUNS[1], 2, "")


@pytest.mark.parametrize(("notes", "left"), [(b"", 0), (b"virt-rbd-backup.writing  1", 2)])
def test_an_image_that_is_still_noted_as_being_written_is_found(
    tmp_path: Path, notes: bytes, left: int
) -> None:
    assert len([*_pool(tmp_path, [], [], notes).left()]) == left


@pytest.mark.parametrize(("newer", "found"), [(KEEP_LAST, 0), (KEEP_LAST - 1, 1), (0, 1)])
def test_a_restore_point_may_go_once_there_are_enough_newer_ones(newer: int, found: int) -> None:
    points = [Point("ice", run, UUID, manifest=run) for run in RUNS[1 : newer + 1]]
    others = [Point("web", run, "another", manifest=f"web {run}") for run in RUNS]
    place = Path("saved")
    holder = Mock(place=place, keeps=KEEP_LAST, points=lambda: points + others)
    gone = Point("ice", RUNS[0], UUID, manifest=RUNS[0])
    world = SimpleNamespace(
        held_in={place: {RUNS[0]: gone}}, checked={one.manifest for one in points + others}
    )
    texts = [str(one) for one in contents.violations(world, holder)]  # type: ignore[arg-type]
    assert texts == [f"nobody removes restore points: {gone} is gone"] * found


@pytest.mark.parametrize("later", [True, False])
def test_of_two_runs_side_by_side_the_one_that_saved_a_domain_first_has_the_older_point(later: bool) -> None:
    """`later`: the run that began first has saved it after the other one."""
    first = Point("ice", RUNS[0], UUID, taken=TAKEN + timedelta(seconds=later))
    gone = Point("ice", RUNS[1], UUID, taken=TAKEN)
    newest = [Point("ice", run, UUID, taken=TAKEN + timedelta(days=1)) for run in RUNS[2 : KEEP_LAST + 1]]
    assert contents._pruned(Mock(keeps=KEEP_LAST), gone, [first, *newest]) == later
