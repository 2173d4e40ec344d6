"""The guest of an instant restore is moved to its images, and no tick is lost, whatever is killed when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace

import libvirt
import pytest

from backup.errors import BackupError
from backup.hypervisor.errors import HypervisorError
from backup.hypervisor.moving_domain import RunningDisk
from backup.instant import record as records
from backup.instant_restore import guest as guests
from backup.instant_restore import moving
from backup.instant_restore.given import Given
from backup.instant_restore.guest import Guest
from backup.instant_restore.journal import Journal
from backup.instant_restore.moving import ATTEMPTS, Move
from backup.model import Level, State

from ..recorder import Recorder
from ..samples import UUID
from .paper_guest import SAVED, TARGETS, Killed, World, elsewhere, given, new_world

AFTERWARDS = 3  # ticks that a guest that has survived its process writes until the command is repeated


@pytest.fixture(autouse=True)
def paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the record be in the world on paper, and nobody wait."""
    monkeypatch.setattr(records, "write", lambda world, record, _: world.write_record(record))
    monkeypatch.setattr(guests, "unused", lambda *_: ())
    monkeypatch.setattr(guests, "this_host", lambda: "node1")
    monkeypatch.setattr(moving, "PAUSE", 0.0)
    for module in (moving, guests):
        monkeypatch.setattr(f"{module.__name__}.time.sleep", lambda _: None)


def begun(world: World) -> Move:
    """Give the move of a process that has let the guest run and restored its images."""
    about = given(world)
    journal = Journal(about.cluster, world.record)
    guest = Guest(about, journal, lambda: True)
    guest.start()
    return Move(about, journal, guest)


def carried_out(world: World) -> Given:
    """Do what a process does once its images are restored."""
    move = begun(world)
    move.move()
    move.given.domain.hypervisor.define(move.given.xml)
    return move.given


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


def test_what_it_wrote_after_an_admin_started_it_by_its_definition_is_not_lost() -> None:
    for number in numbers():
        world = new_world()
        world.kill_at = number
        with pytest.raises(Killed):
            carried_out(world)
        world.kill_at = -1
        domain = world.domain
        assert domain
        domain.die()
        if world.record.started:
            domain.start(UUID)
            domain.shut_off()
        carried_out(world)
        require_whole(world)


@pytest.mark.parametrize("kill_at", [0, 1, 2, 3, 4, 5, 6])
def test_an_old_definition_of_a_node_that_had_lost_it_does_not_count(kill_at: int) -> None:
    """Also if the process there is killed while it replaces that definition."""
    world = new_world()
    world.record = replace(world.record, started=True, host="node2")
    assert world.domain
    world.domain.defined = TARGETS
    world.images["vms/a.virt-rbd-backup.overlay"].append(1)
    world.images["ssd/b.virt-rbd-backup.overlay"].append(1)
    world.tick = 1
    world.kill_at = kill_at
    with suppress(Killed):
        carried_out(world)
    world.domain.die()
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


def test_a_disk_whose_move_libvirt_could_not_confirm_is_not_copied_into_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = new_world()
    domain = world.domain
    assert domain
    pivot = domain.pivot

    def restarted_meanwhile(target: str) -> None:
        monkeypatch.setattr(domain, "pivot", pivot)
        pivot(target)
        domain.failing.append("disks")
        raise HypervisorError("libvirt is being restarted", code=libvirt.VIR_ERR_RPC)

    monkeypatch.setattr(domain, "pivot", restarted_meanwhile)
    carried_out(world)
    require_whole(world)


def test_a_disk_that_libvirt_never_moves_is_an_error_after_some_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, tried = new_world(), []
    move = begun(world)

    def refused(target: str) -> None:
        tried.append(target)
        assert len(tried) <= ATTEMPTS
        raise HypervisorError(f"cannot move {target}", code=libvirt.VIR_ERR_OPERATION_FAILED)

    monkeypatch.setattr(world.domain, "pivot", refused)
    with pytest.raises(BackupError, match="cannot move vda"):
        move.move()
    assert len(tried) == ATTEMPTS
    assert world.domain
    assert not world.domain.paused
    assert not world.record.pivoting
    assert isinstance(move.given.reporter, Recorder)
    told = move.given.reporter.told(Level.WARNING)
    assert told == ["cannot move vda; the guest is moved again"] * (ATTEMPTS - 1)


@pytest.mark.parametrize("operation", ["start_copy", "copied_bytes", "pivot"])
def test_a_disk_that_somebody_detaches_is_named(monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    world = new_world()
    move = begun(world)
    domain = world.domain
    assert domain
    carry_out = getattr(domain, operation)

    def detached_then(target: str, *words: str) -> object:
        if domain.live and target == "vda":
            domain.live.pop("vdb", None)
            domain.copies.pop("vdb", None)
        elif operation == "pivot":
            raise HypervisorError("no such disk", code=libvirt.VIR_ERR_INVALID_ARG)
        return carry_out(target, *words)

    monkeypatch.setattr(domain, operation, detached_then)
    with pytest.raises(BackupError, match="somebody has detached vdb") as raised:
        move.move()
    assert "attach it again" in raised.value.hint
    assert isinstance(move.given.reporter, Recorder)
    stays_paused = any("stays paused" in one for one in move.given.reporter.told(Level.ERROR))
    assert stays_paused is domain.paused is (operation == "pivot")


class Clock:
    """A clock that only sleep advances."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("seconds", "moved"), [(100, True), (200, False)])
def test_a_libvirt_that_is_away_for_a_while_does_not_end_the_move(
    monkeypatch: pytest.MonkeyPatch, seconds: int, moved: bool
) -> None:
    """Twice, the second time while the disks are moved."""
    world, clock = new_world(), Clock()
    monkeypatch.setattr(moving, "time", clock)
    monkeypatch.setattr(moving, "PAUSE", 2.0)
    move = begun(world)
    domain = world.domain
    assert domain
    disks, pivot = domain.disks, domain.pivot
    away_until = [clock.now + seconds]

    def disks_unless_away() -> Mapping[str, RunningDisk]:
        require_here()
        return disks()

    def pivot_unless_away(target: str) -> None:
        if len(away_until) == 1:
            clock.now += 3600
            away_until.append(clock.now + seconds)
        require_here()
        pivot(target)

    def require_here() -> None:
        if clock.now < away_until[-1]:
            raise HypervisorError("libvirt does not answer", code=libvirt.VIR_ERR_RPC)

    monkeypatch.setattr(domain, "disks", disks_unless_away)
    monkeypatch.setattr(domain, "pivot", pivot_unless_away)
    with nullcontext() if moved else pytest.raises(BackupError, match="libvirt does not answer"):
        move.move()
    assert bool(world.record.on_overlays) is not moved
    assert isinstance(move.given.reporter, Recorder)
    told = [one for one in move.given.reporter.told(Level.WARNING) if "is moved again" in one]
    assert len(told) == (2 if moved else ATTEMPTS - 1)


def test_a_guest_that_somebody_shuts_off_is_moved_and_stays_so() -> None:
    world = new_world()
    move = begun(world)
    assert world.domain
    world.domain.shut_off()
    move.move()
    assert world.domain.live is None
    assert world.domain.defined == TARGETS
    assert world.images["vms/a"] == list(range(SAVED, world.tick + 1))


def test_killed_while_it_moves_one_that_is_shut_off_the_next_process_does_not_leave_it_paused() -> None:
    killed = True
    kill_at = 0
    while killed:
        killed, kill_at = False, kill_at + 1
        world = new_world()
        move = begun(world)
        assert world.domain
        world.domain.shut_off()
        world.kill_at = world.steps + kill_at
        try:
            move.move()
        except Killed:
            killed = True
        world.kill_at = -1
        carried_out(world)
        require_whole(world)


@pytest.mark.parametrize("operation", ["start_copy", "pivot"])
def test_a_guest_that_somebody_shuts_off_and_resumes_is_moved_and_runs_on(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    world = new_world()
    move = begun(world)
    domain = world.domain
    assert domain
    domain.shut_off()
    carry_out = getattr(domain, operation)

    def resumed_before(*words: str) -> None:
        domain.paused = False
        carry_out(*words)

    monkeypatch.setattr(domain, operation, resumed_before)
    move.move()
    require_whole(world)


def test_a_guest_whose_memory_somebody_saves_goes_on_with_it() -> None:
    world = new_world()
    move = begun(world)
    assert world.domain
    world.domain.save()
    move.move()
    require_whole(world)


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
