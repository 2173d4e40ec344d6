"""A backup into an RBD repository with a fault at its first call that changes something, then at its next."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Optional

import pytest

from backup.errors import BackupError
from backup.restore_point import manifest
from backup.restore_point.checksums import Checksums
from backup.stored import PointId, StoredPoint
from backup.transfer.compare import compare_with_checksums, pieces_from_output
from outputs.rbd_repository.names import WRITING, definition_name

from ..faulty_node import Boundary, Fault, Killed
from ..paper_repository import PaperPool, PaperRbd
from ..samples import MIB, UUID
from .saved_samples import RUNS, Disks, complete, content, read_back, save

# Small ones, as each is saved and read hundreds of times. The second run writes, and cuts off, what the third
# has where the first had it: so what is left of the second one must not stay.
FIRST: Disks = {
    "vda": content(4 * MIB + 100, {0: b"begin", 4 * MIB + 9: b"there"}),
    "vdb": content(4 * MIB + 100, {512: b"data" * 500, 4 * MIB + 50: b"tail"}),
}
SECOND: Disks = {
    "vda": content(4 * MIB + 100, {0: b"begin", 4 * MIB + 9: b"gone!"}),
    "vdb": content(65536, {9000: b"moved" * 400}),
}
THIRD: Disks = {
    "vda": content(4 * MIB + 100, {0: b"BEGIN", 4 * MIB + 9: b"there"}),
    "vdb": content(4 * MIB + 100, {9000: b"moved" * 400, 4 * MIB + 50: b"tail"}),
}

LEAST_CALLS = 15  # that change something in a run of two disks
KILLED = {Fault.KILLED_BEFORE, Fault.KILLED_AFTER}


@pytest.mark.parametrize("earlier", [False, True], ids=["first backup", "later backup"])
@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
def test_whichever_call_fails_the_repository_holds_whole_points_only(
    fault: Fault, earlier: bool, tmp_path: Path
) -> None:
    number = 0
    while True:
        number += 1
        pool = PaperPool()
        output = PaperRbd.on(pool, str(tmp_path))
        object.__setattr__(output, "streams", 1)  # so that the calls are in order
        before = {RUNS[0]: FIRST} if earlier else {}
        base = (RUNS[0], FIRST) if earlier else None
        if earlier:
            save(output, RUNS[0], FIRST)
        boundary = pool.boundary = Boundary(fault, number)
        raised = _attempted(output, base)
        if not boundary.hit:
            break
        where = f"{fault.value} at call {number}, {boundary.hit}"
        boundary.heal()
        for image in pool.images.values():
            image.users = 0  # of the process that has ended
        _assert_whole(output, {**before, RUNS[1]: SECOND}, where)
        has_failed = raised and boundary.fault not in (Fault.LOST, Fault.KILLED_AFTER)
        if has_failed and boundary.hit != "protect_snapshot":  # that of a commit follows it
            assert RUNS[1] not in complete(output), where
        _assert_next_run(output, before, base, raised, where)
    assert number > LEAST_CALLS
    assert raised is None
    assert [*complete(output)] == [*before, RUNS[1]]


def _attempted(output: PaperRbd, base: Optional[tuple[str, Disks]]) -> Optional[BaseException]:
    """Save the second run, and return what it raised."""
    try:
        save(output, RUNS[1], SECOND, base)
    except (Killed, BackupError, RuntimeError) as error:
        _free(error)
        return error
    return None


def _free(error: Optional[BaseException]) -> None:
    """Let go of the images that its frames have: hundreds of such errors would take gigabytes."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _assert_whole(output: PaperRbd, saved: dict[str, Disks], where: str) -> None:
    """Each point that counts is what its run saw, by its content and by its checksums."""
    points = complete(output)
    assert set(points) <= set(saved), where
    assert not (set(saved) - {RUNS[1]}) - set(points), f"{where}: an earlier point is lost"
    for run, point in points.items():
        assert read_back(output, point) == saved[run], where
        _assert_verified(output, point)
        name = definition_name(UUID)
        assert run in output.pool.images[name].snapshots, where


def _assert_verified(output: PaperRbd, point: StoredPoint) -> None:
    saved = manifest.unpack(output.manifest(point))
    for image in saved.images:
        with output.image(image, lambda: None) as source:
            pieces = pieces_from_output(source, image.size)
            compare_with_checksums(pieces, image, Checksums(saved.checksums[image.target]), lambda _: None)


def _assert_next_run(
    output: PaperRbd,
    before: dict[str, Disks],
    base: Optional[tuple[str, Disks]],
    raised: Optional[BaseException],
    where: str,
) -> None:
    """The next run succeeds, if the failed point is still there or was withdrawn; so does a later one."""
    failed = PointId(RUNS[1], UUID)
    counts = RUNS[1] in complete(output)
    if raised and not isinstance(raised, Killed):  # the run itself removes what failed
        output.withdraw([failed])
        counts = False
        assert [*complete(output)] == [*before], where
    _assert_no_torn_data_unmarked(output, where)
    base = (RUNS[1], SECOND) if counts else base
    save(output, RUNS[2], THIRD, base)
    if counts:
        before = {**before, RUNS[1]: SECOND}
    output.discard([failed], wait_if_busy=False)
    _assert_whole(output, {**before, RUNS[1]: SECOND, RUNS[2]: THIRD}, where)
    assert [*complete(output)] == [*before, RUNS[2]], where
    assert [one.id.run for one in output.restore_points()] == [*before, RUNS[2]], where
    for name, image in output.pool.images.items():
        assert set(image.snapshots) <= {*before, RUNS[2]}, f"{where}: {name} has others"
        assert image.protected == set(image.snapshots), f"{where}: {name}"
        assert WRITING not in image.notes, where
    save(output, RUNS[3], FIRST, (RUNS[2], THIRD))
    assert read_back(output, complete(output)[RUNS[3]]) == FIRST, where


def _assert_no_torn_data_unmarked(output: PaperRbd, where: str) -> None:
    """What differs from its last snapshot is marked as ours, or the next run would refuse it."""
    for name, image in output.pool.images.items():
        if name != definition_name(UUID) and WRITING not in image.notes:
            last = [*image.snapshots][-1] if image.snapshots else ""
            assert not output.pool.is_changed(name, last), f"{where}: {name}"


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
def test_whichever_call_of_a_removal_fails_the_other_points_stay_and_a_later_removal_ends_it(
    fault: Fault, tmp_path: Path
) -> None:
    number = 0
    while True:
        number += 1
        pool = PaperPool()
        output = PaperRbd.on(pool, str(tmp_path))
        save(output, RUNS[0], FIRST)
        save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
        boundary = pool.boundary = Boundary(fault, number)
        try:
            output.withdraw([PointId(RUNS[1], UUID)])
        except (Killed, BackupError, RuntimeError) as error:
            _free(error)
        if not boundary.hit:
            break
        where = f"{fault.value} at call {number}, {boundary.hit}"
        boundary.heal()
        for image in pool.images.values():
            image.users = 0
        points = complete(output)
        for run in points:
            assert read_back(output, points[run]) == {RUNS[0]: FIRST, RUNS[1]: SECOND}[run], where
        assert RUNS[0] in points, where
        _assert_no_torn_data_unmarked(output, where)
        output.withdraw([PointId(RUNS[1], UUID)])
        assert [one.id.run for one in output.restore_points()] == [RUNS[0]], where
        save(output, RUNS[2], THIRD, (RUNS[0], FIRST))
        assert read_back(output, complete(output)[RUNS[2]]) == THIRD, where
    assert number > 5
