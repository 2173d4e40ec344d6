"""The guest of an instant restore is moved to its images, and no tick is lost, whatever is killed when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from backup.errors import BackupError
from backup.instant import record as records
from backup.instant_restore import guest as guests
from backup.instant_restore import moving
from backup.instant_restore.given import Given
from backup.instant_restore.guest import Guest
from backup.instant_restore.journal import Journal
from backup.instant_restore.moving import Move
from backup.model import Level, State

from ..recorder import Recorder
from .paper_guest import SAVED, TARGETS, Killed, World, elsewhere, given, new_world

AFTERWARDS = 3  # ticks that a guest that has survived its process writes until the command is repeated


@pytest.fixture(autouse=True)
def paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the record be in the world on paper, and nobody wait."""
    monkeypatch.setattr(records, "write", lambda world, record, _: world.write_record(record))
    monkeypatch.setattr(guests, "unused", lambda *_: ())
    monkeypatch.setattr(guests, "this_host", lambda: "node1")
    for module in (moving, guests):
        monkeypatch.setattr(f"{module.__name__}.time.sleep", lambda _: None)


def carried_out(world: World) -> Given:
    """Do what a process does once its images are restored."""
    about = given(world)
    journal = Journal(about.cluster, world.record)
    guest = Guest(about, journal, lambda: True)
    guest.start()
    Move(about, journal, guest).move()
    about.domain.hypervisor.define(about.xml)
    return about


def require_whole(world: World) -> None:
    """Have the guest run on its images, with each tick that it has ever written."""
    domain = world.domain
    assert domain
    assert domain.live == domain.defined == TARGETS
    assert not domain.paused
    assert not world.record.pivoting
    world.step()
    for image in TARGETS.values():
        assert world.images[image] == list(range(SAVED, world.tick + 1)), image


def test_all_disks_are_moved_at_one_moment_in_which_the_guest_is_paused() -> None:
    world = new_world()
    about = carried_out(world)
    require_whole(world)
    assert [disk.moved for disk in world.record.disks] == [True, True]
    assert isinstance(about.reporter, Recorder)
    assert "the guest was paused for 0.00 s" in about.reporter.told(Level.INFO)


def numbers() -> Iterator[int]:
    """Give the number of each step of a whole move."""
    world = new_world()
    carried_out(world)
    yield from range(1, world.steps + 1)


@pytest.mark.parametrize("lost", ["process", "QEMU", "node"])
@pytest.mark.parametrize("again", [0, 3, 7], ids=["once", "twice", "twice, later"])
def test_killed_at_any_step_the_next_process_moves_it_and_no_tick_is_lost(
    monkeypatch: pytest.MonkeyPatch, lost: str, again: int
) -> None:
    for number in numbers():
        world = new_world()
        for kill_at in (number, again):
            world.kill_at = world.steps + kill_at if kill_at else -1
            try:
                carried_out(world)
            except Killed:
                _after_the_end(world, lost)
        world.kill_at = -1
        carried_out(world)
        require_whole(world)


def _after_the_end(world: World, lost: str) -> None:
    """Let the guest go on for a while if it survives."""
    assert world.domain
    if lost == "process":
        for _ in range(AFTERWARDS):
            world.domain.write()
    elif lost == "QEMU":
        world.domain.die()
    else:
        elsewhere(world)


@pytest.mark.parametrize("operation", ["start_copy", "pivot", "pause", "resume"])
def test_what_libvirt_fails_to_do_once_is_repeated(operation: str) -> None:
    world = new_world()
    assert world.domain
    world.domain.failing.append(operation)
    carried_out(world)
    require_whole(world)


def test_a_guest_that_somebody_shuts_off_is_moved_and_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    world = new_world()
    about = given(world)
    journal = Journal(about.cluster, world.record)
    guest = Guest(about, journal, lambda: True)
    guest.start()
    assert world.domain
    world.domain.die()
    monkeypatch.setattr(world.domain, "ended_by_accident", lambda: False)
    Move(about, journal, guest).move()
    assert world.domain.live is None
    assert world.domain.defined == TARGETS
    assert world.images["vms/a"] == list(range(SAVED, world.tick + 1))


@pytest.mark.parametrize("migrated", [False, True])
def test_it_is_never_started_while_it_runs_elsewhere(monkeypatch: pytest.MonkeyPatch, migrated: bool) -> None:
    monkeypatch.setattr(guests, "unused", lambda _, images, __: [f"{one} at 192.0.2.1" for one in images])
    world = new_world()
    if migrated:
        world.record = replace(world.record, started=True)
        assert world.domain
        world.domain.defined = {one: f"{name}.virt-rbd-backup.overlay" for one, name in TARGETS.items()}
        monkeypatch.setattr(world.domain, "state", lambda: State.ELSEWHERE)
    about = given(world)
    with pytest.raises(
        BackupError, match=r"the guest runs elsewhere, on node1 perhaps: it has vms/a\..*overlay"
    ):
        Guest(about, Journal(about.cluster, world.record), lambda: True).start()
    assert world.starts == 0


def test_a_domain_with_other_disks_is_not_taken_for_it() -> None:
    world = new_world()
    assert world.domain
    world.domain.defined = {"vda": "vms/other", "vdb": "ssd/b"}
    world.domain.live = dict(world.domain.defined)
    world.images["vms/other"] = []
    about = given(world)
    with pytest.raises(BackupError, match="the domain web that runs here has other disks"):
        Guest(about, Journal(about.cluster, world.record), lambda: True).start()


def test_a_guest_that_a_failed_read_has_paused_is_resumed_once_reads_are_answered() -> None:
    world, ready = new_world(), [False]
    about = given(world)
    guest = Guest(about, Journal(about.cluster, world.record), lambda: ready[0])
    guest.start()
    assert world.domain
    world.domain.paused = world.domain.by_error = True
    guest.attend()
    assert world.domain.paused, "its read would fail again"
    ready[0] = True
    guest.attend()
    assert not world.domain.paused
    world.domain.paused = True
    guest.attend()
    assert world.domain.paused, "an admin has paused it"
