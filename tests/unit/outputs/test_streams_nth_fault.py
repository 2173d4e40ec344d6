"""outputs/restic.py with two images at a time: whatever fails, and whenever, no incomplete point counts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import BackupError
from backup.protocols import SnapshotSource
from backup.stored import PointId, SavedImage
from outputs.restic import Restic

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..repository import Repository
from ..samples import MIB, RUN, UUID, domain, rbd_disk, restore_point

pytestmark = pytest.mark.usefixtures("nothing_left")

MOST = 20  # calls of each kind of a backup are fewer
SIZE = 9 * MIB
DATA = {0: b"first" * 1000, 5 * MIB: b"second" * 1000}


class Boundary:
    """Numbers the calls of both images together; the one with this number fails."""

    def __init__(self, number: int) -> None:
        self._counts = itertools.count(1)
        self._number = number
        self._lock = threading.Lock()
        self.hit = False

    def cross(self) -> None:
        with self._lock:
            if next(self._counts) != self._number:
                return
            self.hit = True
        raise BackupError(f"call {self._number} fails")


class FaultySnapshot(MemorySnapshot):
    """A snapshot whose reads cross the boundary."""

    boundary = Boundary(0)

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        arrived = super().start_read(offset, length)

        def wait() -> bytes:
            data = arrived()
            self.boundary.cross()
            return data

        return wait


class FaultyJob(JobOnPaper):
    """A job in which what follows the saving of an image crosses the boundary."""

    boundary = Boundary(0)

    def image_saved(self, source: SnapshotSource, image: SavedImage) -> None:
        super().image_saved(source, image)
        self.boundary.cross()

    def require_lock(self) -> None:
        super().require_lock()
        self.boundary.cross()


def sources(boundary: Boundary) -> Sequence[MemorySource]:
    found = []
    for target in ("vda", "vdb"):
        snapshot = FaultySnapshot(SIZE, DATA)
        snapshot.boundary = boundary
        found.append(MemorySource(snapshot, rbd_disk(target, f"vms/{target}")))
    return found


def attempted(
    output: Restic, of: Sequence[MemorySource], job: JobOnPaper
) -> tuple[Sequence[SavedImage], str]:
    """Save; return the images, or none and the reason."""
    try:
        return output.save(restore_point(domain()), of, job), ""
    except BackupError as error:
        return (), str(error)


def assert_nothing_stays(repository: Repository) -> None:
    """Nothing is left but what the run's end removes from the repository."""
    output = Restic(repository.program())
    output.discard([PointId(RUN, UUID)], wait_if_busy=False)
    assert all(point.manifest_id for point in output.restore_points())
    assert (repository.locks(), repository.records()) == ([], [])


def test_whichever_read_or_call_of_the_job_fails_there_is_no_manifest_without_all_images(
    repository: Repository,
) -> None:
    for number in range(1, MOST):
        boundary = Boundary(number)
        job = FaultyJob()
        job.boundary = boundary
        output = Restic(repository.program(), streams=2)
        saved, reason = attempted(output, sources(boundary), job)
        assert bool(saved) is not boundary.hit
        assert any(point.manifest_id for point in output.restore_points()) is bool(saved)
        assert_nothing_stays(repository)
        if saved:
            break
        assert reason == f"call {number} fails", "the first error, not one that follows from it"
    assert 4 < number < MOST - 1
    assert [image.target for image in saved] == ["vda", "vdb"]
    for image in saved:
        assert repository.dump(image.restore_id, f"{image.target}.img") == MemorySnapshot(SIZE, DATA).content


FAULTY = """#!/bin/sh
# fails at call NUMBER: at once, or once it has read everything
exec 9>>{directory}/lock
flock 9
echo >>{directory}/calls
calls=$(wc -l <{directory}/calls)
exec 9>&-
if [ "$calls" = {number} ]; then {fault}; echo broken >&2; exit 1; fi
exec restic "$@"
"""


@pytest.mark.parametrize("fault", [":", "cat >/dev/null", "head -c 3000000 >/dev/null", 'restic "$@"'])
def test_whichever_restic_fails_the_other_one_ends_and_there_is_no_manifest(
    repository: Repository, tmp_path: Path, fault: str
) -> None:
    binary = tmp_path / "faulty-restic"
    for number in range(1, 4):
        (tmp_path / "calls").write_text("")
        binary.write_text(FAULTY.format(directory=tmp_path, number=number, fault=fault))
        binary.chmod(0o700)
        job = JobOnPaper()
        with pytest.raises(BackupError, match="broken"):
            Restic(repository.program(str(binary)), streams=2).save(
                restore_point(domain()), sources(Boundary(0)), job
            )
        complete = [one for one in Restic(repository.program()).restore_points() if one.manifest_id]
        # the last fault is after the manifest was saved: the run withdraws it
        assert len(complete) == (number == 3 and fault.startswith("restic"))
        if number == 3:
            assert len(job.released) == 2
        assert_nothing_stays(repository)
