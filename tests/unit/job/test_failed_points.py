"""backup/job/failed_points.py: what failed, but may look complete, is known to later runs."""

from __future__ import annotations

from pathlib import Path

from backup.job.failed_points import FailedPoints
from backup.stored import PointId

from ..samples import OTHER_UUID, RUN, UUID

FIRST, SECOND = PointId(RUN, UUID), PointId(RUN, OTHER_UUID, 2)


def test_failed_points_are_noted_until_they_are_removed(tmp_path: Path) -> None:
    failed = FailedPoints(str(tmp_path / "state"))
    assert failed.all() == set()
    failed.add(FIRST)
    failed.add(SECOND)
    (tmp_path / "state/failed-points/README").touch()
    assert FailedPoints(str(tmp_path / "state")).all() == {FIRST, SECOND}
    failed.remove([FIRST, PointId("20990101T000000Z-none", UUID)])
    assert failed.all() == {SECOND}


def test_a_state_directory_that_cannot_be_written_changes_nothing() -> None:
    failed = FailedPoints("/proc/no-state")
    failed.add(FIRST)
    failed.remove([FIRST])
    assert failed.all() == set()
