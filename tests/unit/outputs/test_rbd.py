"""outputs/rbd.py: only what has changed is written, and each restore point is what its run has seen."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

import pytest

from backup.errors import BackupError, Interrupted, TransientError
from backup.model import Extent, Level
from backup.restore.order import RestoreOrder
from backup.restore.restorer import Restorer
from backup.restore_point import manifest
from backup.restore_point.checksums import Checksums
from backup.stored import PointId, SavedDomain
from backup.system.stop_request import StopRequest
from backup.verify.verification import Verification
from outputs import chosen, readable
from outputs.own_points.changed_parts import ChangedParts
from outputs.own_points.damaged_pieces import damaged_pieces
from outputs.own_points.in_use import PointInUse
from outputs.rbd import Rbd
from outputs.rbd_repository import saved_disk
from outputs.rbd_repository.names import WRITING, definition_name, disk_name

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot
from ..paper_repository import PaperImage, PaperPool, PaperRbd
from ..raising import raises
from ..recorder import Recorder
from ..samples import MIB, UUID, settings
from .saved_samples import FIRST, RUNS, SECOND, THIRD, Disks, complete, read_back, save

VDA, VDB, DEFINITION = disk_name(UUID, "vda"), disk_name(UUID, "vdb"), definition_name(UUID)


@pytest.fixture
def pool() -> PaperPool:
    return PaperPool()


@pytest.fixture
def output(pool: PaperPool, tmp_path: Path) -> PaperRbd:
    return PaperRbd.on(pool, str(tmp_path))


def test_what_is_saved_is_listed_and_restored_byte_for_byte(output: PaperRbd, tmp_path: Path) -> None:
    save(output, RUNS[0], FIRST)
    (point,) = output.ready()
    assert (point.id, point.domain, point.consistency) == (PointId(RUNS[0], UUID), "web", "filesystem")
    assert [(one.target, one.size) for one in point.images] == [("vda", 9 * MIB + 513), ("vdb", 4 * MIB)]
    assert output.last_saved(UUID) == point.taken
    order = RestoreOrder("web", disks=("vda",), to_file=str(tmp_path / "back.img"))
    Restorer(order, settings(), output, Recorder(), StopRequest()).restore()
    assert (tmp_path / "back.img").read_bytes() == FIRST["vda"]
    of_test = settings(state_dir=str(tmp_path / "state"), workers=1)
    assert not Verification(of_test, output, Recorder(), StopRequest(), 1.0).verify(["web"], "latest").failed


def test_later_runs_write_what_has_changed_and_all_points_stay_readable(output: PaperRbd) -> None:
    first = save(output, RUNS[0], FIRST)
    second = save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    third = save(output, RUNS[2], THIRD, (RUNS[1], SECOND))
    points = complete(output)
    assert {run: read_back(output, point) for run, point in points.items()} == dict(
        zip(RUNS, (FIRST, SECOND, THIRD))
    )
    assert {one.full_read for one in third} == {one.full_read for one in first}, "no full read since"
    assert sum(one.stored_bytes for one in second) < MIB
    for point in points.values():
        saved = manifest.unpack(output.manifest(point))
        assert {one.restore_id for one in saved.images} == {
            f"{VDA}@{point.id.run}",
            f"{VDB}@{point.id.run}",
        }


def test_nothing_is_read_if_nothing_has_changed(output: PaperRbd) -> None:
    save(output, RUNS[0], FIRST)
    images = save(output, RUNS[1], FIRST, (RUNS[0], FIRST))
    assert [(one.read_bytes, one.stored_bytes) for one in images] == [(0, 0), (0, 0)]
    assert read_back(output, complete(output)[RUNS[1]]) == FIRST


def test_without_a_base_everything_is_read_and_only_what_differs_is_written(output: PaperRbd) -> None:
    save(output, RUNS[0], FIRST)
    images = save(output, RUNS[1], {**FIRST, "vdb": SECOND["vdb"]})
    assert images[0].stored_bytes == 0
    assert 0 < images[1].stored_bytes < 2 * MIB
    assert images[0].read_bytes > 0
    assert read_back(output, complete(output)[RUNS[1]])["vdb"] == SECOND["vdb"]


def test_a_full_read_is_made_when_it_is_due(pool: PaperPool, tmp_path: Path) -> None:
    output = Rbd.from_settings(settings(rbd_output_pool="backups", full_read_days=1))
    assert (output.full_read_days, output.address.pool) == (1, "backups")
    paper = PaperRbd.on(pool, str(tmp_path))
    object.__setattr__(paper, "full_read_days", 1)
    save(paper, RUNS[0], FIRST)
    images = save(paper, RUNS[1], FIRST, (RUNS[0], FIRST))
    assert images[0].read_bytes > 0
    assert images[0].stored_bytes == 0


def test_a_change_that_ceph_did_not_list_is_found_by_the_spot_check(output: PaperRbd) -> None:
    save(output, RUNS[0], FIRST)
    images = save(output, RUNS[1], SECOND, (RUNS[0], SECOND))  # so nothing is listed
    assert images[0].read_bytes > 0
    assert read_back(output, complete(output)[RUNS[1]]) == SECOND


@pytest.mark.parametrize("now", [FIRST, SECOND, THIRD], ids=["same size", "grown", "shrunk"])
@pytest.mark.parametrize("damage", ["lost", "garbage in a hole", "unreadable", ""])
def test_a_full_read_writes_damaged_pieces_of_the_repository_anew(
    output: PaperRbd, pool: PaperPool, now: Disks, damage: str
) -> None:
    """What has changed since is no damage."""
    unchanged = {**now, "vdb": now["vdb"][:MIB] + FIRST["vdb"][MIB : 2 * MIB] + now["vdb"][2 * MIB :]}
    save(output, RUNS[0], FIRST)
    image = pool.images[VDB]
    if damage == "lost":
        image.content[MIB : 2 * MIB] = bytes(MIB)
    elif damage == "garbage in a hole":
        image.content[3 * MIB] = 1
    elif damage == "unreadable":
        pool.unreadable.add(0)
    image.snapshots[RUNS[0]] = bytes(image.content)  # so Ceph knows of no change
    recorder = Recorder()
    save(output, RUNS[1], unchanged, job=JobOnPaper(recorder))
    assert read_back(output, complete(output)[RUNS[1]]) == unchanged
    found = [text for text in recorder.told(Level.ERROR) if "differs from what was saved" in text]
    at_0 = f"vdb (vms/vdb): backups/{VDB} differs from what was saved: pieces at 0; they are written anew"
    assert [text.startswith(at_0) for text in found if "vdb" in text] == ([True] if damage else [])
    assert damage == "unreadable" or not any("vda" in text for text in found)


def test_what_is_a_hole_in_both_is_not_read_for_damage() -> None:
    saved = Checksums()
    for offset in (0, 20 * MIB):
        saved.add(offset, b"x")
    lost = MemorySnapshot(64 * MIB, {0: b"x", 40 * MIB: b"garbage"})
    found = [*damaged_pieces(lost, lost.extents(), saved, ChangedParts(lost.size), lambda _: None)]
    assert [piece.offset for piece in found] == [20 * MIB, 40 * MIB]
    assert [read.offset for read in lost.reads] == [0, 20 * MIB, 40 * MIB]


def test_an_image_that_others_wrote_to_is_refused_by_name(output: PaperRbd, pool: PaperPool) -> None:
    save(output, RUNS[0], FIRST)
    pool.images[VDB].content[MIB] ^= 1
    with raises(f"image backups/{VDB} of the repository was written to by others since {RUNS[0]}") as raised:
        save(output, RUNS[1], FIRST, (RUNS[0], FIRST))
    assert raised.value.hint == f"what they wrote is lost with: rbd snap rollback backups/{VDB}@{RUNS[0]}"
    assert [*complete(output)] == [RUNS[0]]
    assert read_back(output, complete(output)[RUNS[0]]) == FIRST
    assert pool.images[VDB].content[MIB] == FIRST["vdb"][MIB] ^ 1, "it was not touched"


def test_an_image_of_others_under_our_name_is_refused(output: PaperRbd, pool: PaperPool) -> None:
    pool.create(VDA, MIB, MIB)
    pool.images[VDA].content[0] = 1
    with raises(f"image backups/{VDA} exists, and is not of this program", BackupError) as raised:
        save(output, RUNS[0], FIRST)
    assert raised.value.hint.endswith(f": rbd rename backups/{VDA} backups/{VDA}.other")


def test_an_image_that_another_client_has_open_is_waited_for_and_then_named(
    output: PaperRbd, pool: PaperPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_disk, "USERS_LIMIT", 0.1)
    monkeypatch.setattr(saved_disk, "USERS_POLL", 0.02)
    save(output, RUNS[0], FIRST)
    pool.images[VDA].users = 1
    with pytest.raises(TransientError, match=f"image backups/{VDA} of the repository is open at 192.0.2.0"):
        save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    assert [*pool.images[VDA].snapshots] == [RUNS[0]]
    pool.images[VDA].users = 0
    output.discard([PointId(RUNS[1], UUID)], wait_if_busy=False)
    save(output, RUNS[2], THIRD, (RUNS[0], FIRST))
    assert read_back(output, complete(output)[RUNS[2]]) == THIRD


@pytest.mark.parametrize("all_of_it", [False, True], ids=["a snapshot", "the image with it"])
def test_what_another_node_removes_of_its_failed_run_costs_a_retry(
    output: PaperRbd, pool: PaperPool, monkeypatch: pytest.MonkeyPatch, all_of_it: bool
) -> None:
    save(output, RUNS[0], FIRST)

    def removed_right_after(image: PaperImage) -> Sequence[str]:
        names = list(image.stored.snapshots)
        if image.name == VDA:
            image.stored.snapshots.clear()
        return names

    if all_of_it:
        monkeypatch.setattr(pool, "create", lambda *_: pool.images.pop(VDA, None))
    else:
        monkeypatch.setattr(PaperImage, "snapshots", removed_right_after)
    with pytest.raises(BackupError, match=f"there is no .*{VDA}") as raised:
        save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    assert raised.value.transient


def test_what_we_wrote_ourselves_is_rewritten(output: PaperRbd, pool: PaperPool) -> None:
    save(output, RUNS[0], FIRST)
    pool.images[VDA].notes[WRITING] = RUNS[1]
    pool.images[VDA].content[7 * MIB : 7 * MIB + 4] = b"torn"
    del pool.images[VDA].content[8 * MIB :]
    save(output, RUNS[2], FIRST, (RUNS[0], FIRST))
    assert read_back(output, complete(output)[RUNS[2]]) == FIRST
    assert WRITING not in pool.images[VDA].notes


def test_a_withdrawn_point_is_gone_and_the_next_run_builds_on_the_one_before(
    output: PaperRbd, pool: PaperPool
) -> None:
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    output.withdraw([PointId(RUNS[1], UUID)])
    assert [*complete(output)] == [RUNS[0]]
    assert [*pool.images[VDA].snapshots] == [RUNS[0]]
    save(output, RUNS[2], THIRD, (RUNS[0], FIRST))
    points = complete(output)
    assert read_back(output, points[RUNS[0]]) == FIRST
    assert read_back(output, points[RUNS[2]]) == THIRD


def test_with_the_last_point_all_images_are_gone(output: PaperRbd, pool: PaperPool) -> None:
    save(output, RUNS[0], FIRST)
    output.withdraw([PointId(RUNS[0], UUID)])
    assert pool.images == {}
    output.withdraw([PointId(RUNS[0], UUID)])


def test_a_complete_point_is_not_discarded(output: PaperRbd) -> None:
    save(output, RUNS[0], FIRST)
    output.discard([PointId(RUNS[0], UUID)], wait_if_busy=False)
    assert [*complete(output)] == [RUNS[0]]


def test_a_point_that_is_read_stays(output: PaperRbd) -> None:
    save(output, RUNS[0], FIRST)
    (point,) = complete(output).values()
    with output.opened(point, lambda: None) as opened:
        with pytest.raises(PointInUse, match="in use at"):
            output.withdraw([point.id])
        opened.check()
        saved: SavedDomain = manifest.unpack(opened.manifest())
        assert opened.image(saved.images[0]).read(5 * MIB - 4, 10) == FIRST["vda"][5 * MIB - 4 :][:10]
    assert [*complete(output)] == [RUNS[0]]


def test_a_point_with_clones_stays(output: PaperRbd, pool: PaperPool) -> None:
    save(output, RUNS[0], FIRST)
    pool.children[VDB, RUNS[0]] = ["vms/web-copy"]
    with pytest.raises(PointInUse, match=r"vdb of web, run .* has clones: vms/web-copy"):
        output.withdraw([PointId(RUNS[0], UUID)])
    assert [*complete(output)] == [RUNS[0]]


def test_who_opens_a_point_that_is_gone_is_told(output: PaperRbd) -> None:
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], FIRST)
    first = complete(output)[RUNS[0]]
    output.withdraw([first.id])
    with pytest.raises(BackupError, match="was removed"), output.opened(first, lambda: None):
        raise AssertionError


@pytest.mark.parametrize("note", ["{", "", None])
def test_a_damaged_or_lost_note_costs_nothing(output: PaperRbd, pool: PaperPool, note: Optional[str]) -> None:
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    before = output.restore_points()
    notes = pool.images[DEFINITION].notes
    key = next(key for key in notes if key.endswith(RUNS[0]))
    del notes[key]
    if note is not None:
        notes[key] = note
    assert [replace(one, node="node1") for one in output.restore_points()] == before
    assert read_back(output, complete(output)[RUNS[0]]) == FIRST
    output.withdraw([PointId(RUNS[0], UUID)])
    assert [one.id.run for one in output.restore_points()] == [RUNS[1]]
    assert [*pool.images[VDA].snapshots] == [RUNS[1]]


def test_a_point_of_which_nothing_can_be_read_is_removed_too(output: PaperRbd, pool: PaperPool) -> None:
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], SECOND, (RUNS[0], FIRST))
    pool.images[DEFINITION].snapshots[RUNS[0]] = b"damaged"
    pool.images[DEFINITION].notes = dict.fromkeys(pool.images[DEFINITION].notes, "")
    listed = {one.id.run: one for one in output.restore_points()}
    assert (listed[RUNS[0]].domain, f"{listed[RUNS[0]].taken:%Y-%m-%d}") == (UUID, "2024-02-01")
    assert listed[RUNS[1]].domain == "web"
    output.withdraw([PointId(RUNS[0], UUID)])
    assert [*pool.images[VDB].snapshots] == [RUNS[1]]
    assert read_back(output, complete(output)[RUNS[1]]) == SECOND


def test_a_disk_that_is_no_longer_there_stays_until_its_last_point(output: PaperRbd, pool: PaperPool) -> None:
    save(output, RUNS[0], FIRST)
    save(output, RUNS[1], {"vda": FIRST["vda"]}, (RUNS[0], FIRST))
    assert [*pool.images[VDB].snapshots] == [RUNS[0]]
    output.withdraw([PointId(RUNS[0], UUID)])
    assert VDB not in pool.images
    assert read_back(output, complete(output)[RUNS[1]]) == {"vda": FIRST["vda"]}


@pytest.mark.parametrize(
    ("place", "problem"),
    [("", "RBD_OUTPUT_POOL is not set"), ("a/b/c", "RBD_OUTPUT_POOL = 'a/b/c'")],
)
def test_a_place_that_is_none_is_an_error_of_the_configuration(place: str, problem: str) -> None:
    (error,) = Rbd.from_settings(settings(rbd_output_pool=place)).configuration_errors()
    assert error.message.startswith(problem)


def test_both_commands_that_save_and_that_read_get_this_output() -> None:
    of_test = settings(output="rbd", rbd_output_pool="backups/web")
    output = chosen(of_test)
    assert isinstance(output, Rbd)
    assert output == readable(of_test)
    assert (output.address.pool, output.address.namespace) == ("backups", "web")
    assert (output.address.conf_file, output.address.user) == (of_test.ceph_conf, of_test.ceph_user)
    assert not output.configuration_errors()


def test_extents_of_a_whole_piece_are_not_more_than_the_image() -> None:
    from outputs.own_points.changed_parts import ChangedParts

    parts = ChangedParts(9 * MIB)
    parts.add(Extent(3 * MIB, 2 * MIB))
    parts.add(Extent(5 * MIB, 10))
    parts.add_pieces([Extent(8 * MIB + 5, 100 * MIB)])
    assert [parts.part(number) for number in parts] == [
        Extent(3 * MIB, MIB),
        Extent(4 * MIB, MIB + 10),
        Extent(8 * MIB, MIB),
    ]
    assert (len(parts), parts.read_bytes, parts.unchanged()) == (3, 9 * MIB, [])


@pytest.mark.parametrize("then", ["removed", "saved"])
def test_a_removal_that_is_stopped_midway_goes_on_later(
    output: PaperRbd, pool: PaperPool, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    save(output, RUNS[0], FIRST)
    stop, point = StopRequest(), PointId(RUNS[0], UUID)

    def stopped(_: PaperPool, name: str) -> None:
        del pool.of(name).content[MIB:]  # as much is removed when the signal arrives
        stop.request(Interrupted("interrupted", signal.SIGTERM))
        stop.check()

    with monkeypatch.context() as patch:
        patch.setattr(PaperPool, "remove", stopped)
        with pytest.raises(Interrupted):
            output.withdraw([point], stop.check)
    assert not complete(output)
    if then == "saved":
        save(output, RUNS[1], SECOND)
        assert read_back(output, complete(output)[RUNS[1]]) == SECOND
    output.withdraw([point])
    assert [*complete(output)] == ([RUNS[1]] if then == "saved" else [])
    assert then == "saved" or not pool.images
