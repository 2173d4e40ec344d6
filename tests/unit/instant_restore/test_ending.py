"""backup/instant_restore/ending.py: complete, aborted, or without a trace."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import pytest

from backup.ceph.new_image import REPLACED, RESTORING
from backup.errors import BackupError
from backup.instant import record as records
from backup.instant.record import Stage
from backup.instant_restore import ending, guest, preparation
from backup.instant_restore.ending import abort, finish, require_under_way
from backup.instant_restore.journal import Journal
from backup.model import Image, Level

from ..recorder import Recorder
from .paper_guest import TARGETS, Killed, World, given, new_world

OVERLAYS = [f"{name}.virt-rbd-backup.overlay" for name in TARGETS.values()]


class Removal:
    """Removes images of the world on paper."""

    def __init__(self, world: World, *_: object) -> None:
        self._world = world

    def remove(self, image: Image) -> None:
        self._world.images.pop(str(image), None)


@dataclass
class Replacing:
    """A restored image of the world on paper. Satisfies what is used of NewImage."""

    world: World
    target: str

    def remove_replaced(self) -> None:
        self.world.images.pop(f"{TARGETS[self.target]}{REPLACED}", None)


def named_again(world: World, image: Image) -> None:
    """Give a replaced image its name again, unless there is one of that name."""
    if str(image) not in world.images and (old := f"{image}{REPLACED}") in world.images:
        world.images[str(image)] = world.images.pop(old)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world in which the guest runs on its overlays."""
    world = new_world()
    world.record = replace(world.record, started=True)
    monkeypatch.setattr(records, "write", lambda world, record, _: world.write_record(record))
    monkeypatch.setattr(records, "remove", lambda world, _: world.images.pop("record"))
    world.images["record"] = []
    monkeypatch.setattr(ending, "ImageRemoval", Removal)
    monkeypatch.setattr(ending, "image_id", lambda _, image: f"id of {image}")
    monkeypatch.setattr(ending, "new_image", lambda given, target: Replacing(given.cluster, target))
    monkeypatch.setattr(ending, "undo_replacement", named_again)
    for module in (ending, preparation):
        monkeypatch.setattr(module, "remove_overlay", lambda world, image, *_: Removal(world).remove(image))
    for user in (ending, guest):
        monkeypatch.setattr(user, "unused", lambda *_: ())
        monkeypatch.setattr(user, "this_host", lambda: "node1")
    assert world.domain
    world.domain.defined = dict(zip(TARGETS, OVERLAYS))
    world.domain.live = dict(world.domain.defined)
    return world


def aborted(world: World, discard: bool = False) -> list[str]:
    about = given(world)
    abort(about, Journal(about.cluster, world.record), discard)
    assert isinstance(about.reporter, Recorder)
    return about.reporter.told(Level.INFO)


def test_a_complete_one_has_the_definition_of_a_plain_restore_and_no_overlays(world: World) -> None:
    about = given(world)
    finish(about, Journal(about.cluster, world.record))
    assert world.domain
    assert world.domain.defined == TARGETS
    assert world.domain.autostarts
    assert sorted(world.images) == sorted(TARGETS.values())


def test_a_complete_one_has_removed_what_it_has_replaced(world: World) -> None:
    about = given(world)
    world.images.update({f"vms/a{REPLACED}": [1], f"ssd/b{RESTORING}": [2]})  # the removal of one was killed
    finish(about, Journal(about.cluster, world.record))
    assert sorted(world.images) == sorted(TARGETS.values())


def test_a_record_that_is_left_of_a_complete_one_is_removed_and_nothing_else_is_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "image_id", lambda world, image: "id" if str(image) in world.images else "")
    moved = replace(world.record, disks=tuple(replace(disk, moved=True) for disk in world.record.disks))
    for record in (world.record, moved, replace(moved, pivoting=True)):
        require_under_way(given(world), record)
    del world.images[OVERLAYS[1]]
    require_under_way(given(world), moved)
    del world.images[OVERLAYS[0]]
    for record in (world.record, replace(moved, started=False), replace(moved, pivoting=True)):
        require_under_way(given(world), record)
    with pytest.raises(BackupError, match="was complete already: only its record was left, which is removed"):
        require_under_way(given(world), moved)
    assert sorted(world.images) == sorted(TARGETS.values())


def test_aborted_the_guest_is_shut_off_and_its_writes_stay_with_how_to_get_at_them(world: World) -> None:
    told = aborted(world)
    assert world.domain
    assert (world.domain.live, world.domain.defined) == (None, dict(zip(TARGETS, OVERLAYS)))
    assert world.record.stage is Stage.ABORTED
    assert {*OVERLAYS} <= {*world.images}
    assert "the same command without --abort starts the guest again" in told[0]
    assert told[1].endswith(
        f"is in {OVERLAYS[0]}, a qcow2 image over vms/a; by hand: `qemu-img commit rbd:{OVERLAYS[0]}`"
    )


def test_discarded_nothing_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    undefined: list[bool] = []
    monkeypatch.setattr(world.domain, "undefine", lambda: undefined.append(True), raising=False)
    aborted(world, discard=True)
    assert (undefined, world.images) == ([True], {})


def test_discarded_the_images_that_it_has_replaced_have_their_names_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One disk is complete; at the other one its process was killed before that had its name."""
    monkeypatch.setattr(world.domain, "undefine", lambda: None, raising=False)
    world.images.update({f"{name}{REPLACED}": [number] for number, name in enumerate(TARGETS.values())})
    del world.images["ssd/b"]
    monkeypatch.setattr(
        ending, "image_id", lambda world, image: f"id of {image}" if str(image) in world.images else ""
    )
    aborted(world, discard=True)
    assert world.images == {"vms/a": [0], "ssd/b": [1]}


def test_an_image_of_another_one_is_not_removed_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "image_id", lambda _, image: f"another than {image}")
    monkeypatch.setattr(world.domain, "undefine", lambda: None, raising=False)
    aborted(world, discard=True)
    assert sorted(world.images) == sorted(TARGETS.values())


def test_a_domain_with_other_disks_is_not_shut_off(world: World) -> None:
    assert world.domain
    world.domain.live = {"vda": "vms/other", "vdb": "ssd/b"}
    world.images["vms/other"] = []
    aborted(world)
    assert world.domain.live


def test_a_guest_that_runs_elsewhere_is_not_declared_shut_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.domain
    world.domain.live = world.domain.defined = None
    monkeypatch.setattr(ending, "unused", lambda *_: ["vms/a.overlay at 192.0.2.1"])
    with pytest.raises(BackupError, match="the guest runs elsewhere, on node1 perhaps"):
        aborted(world)
    assert world.record.stage is Stage.RUNNING


@pytest.mark.parametrize("discard", [False, True], ids=["aborted", "discarded"])
def test_one_that_is_defined_here_too_is_not_declared_shut_off_while_it_runs_elsewhere(
    world: World, monkeypatch: pytest.MonkeyPatch, discard: bool
) -> None:
    assert world.domain
    world.domain.live = None
    monkeypatch.setattr(ending, "unused", lambda _, images, __: [f"{images[0]} at 192.0.2.1"])
    there = {*world.images}
    with pytest.raises(BackupError, match="the guest runs elsewhere, on node1 perhaps: it has vms/a"):
        aborted(world, discard)
    assert world.domain.defined
    assert {*world.images} == there
    assert world.record.stage is Stage.RUNNING


def test_a_disk_that_was_moved_and_not_recorded_as_that_is_in_use_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.domain
    world.domain.live = world.domain.defined = None
    asked: list[str] = []
    monkeypatch.setattr(ending, "unused", lambda _, images, __: asked.extend(map(str, images)))
    first, second = world.record.disks
    world.record = replace(world.record, disks=(first, replace(second, filled="")))
    aborted(world)
    assert asked == [*OVERLAYS, "vms/a"]


def test_an_older_definition_of_another_node_does_not_tell_where_the_disks_are(world: World) -> None:
    assert world.domain
    world.domain.live, world.domain.defined = None, dict(TARGETS)
    world.record = replace(world.record, host="node2")
    told = aborted(world)
    assert not any(disk.moved for disk in world.record.disks)
    assert f"is in {OVERLAYS[0]}" in told[1]


def test_one_that_ended_here_just_as_it_was_moved_is_recorded_as_moved(world: World) -> None:
    assert world.domain
    world.domain.live, world.domain.defined = None, dict(TARGETS)
    told = aborted(world)
    assert all(disk.moved for disk in world.record.disks)
    assert "all that the guest has written is in vms/a" in told[1]


@pytest.mark.usefixtures("world")
def test_killed_while_it_takes_the_guest_over_a_node_has_no_older_definition_than_recorded() -> None:
    for number in range(1, 9):
        world = new_world()
        world.record = replace(world.record, started=True, host="node2")
        assert world.domain
        world.domain.defined = dict(TARGETS)
        about = given(world)
        world.kill_at = number
        with suppress(Killed):
            guest.Guest(about, Journal(about.cluster, world.record), lambda: True).start()
        if world.domain.defined == TARGETS:
            assert world.record.host == "node2"


def test_one_whose_guest_has_never_been_started_leaves_nothing(world: World) -> None:
    world.record = replace(world.record, stage=Stage.PREPARING)
    told = aborted(world)
    assert told == ["the instant restore is aborted: the guest had not been started"]
    assert not {*OVERLAYS, "record"} & {*world.images}
