"""job/domain_job.py: images and disks that are not, or no longer, those of the running domain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from backup.job_result import Status
from backup.model import Consistency, Disk, Domain, State

from ..paper_node import PaperNode
from ..samples import broken_disk, domain, foreign_disk, rbd_disk

ROOT, DATA = rbd_disk("vda", "vms/root"), rbd_disk("vdb", "vms/data")
MakeNode = Callable[..., PaperNode]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeNode:
    """Make a node that knows the given domains."""
    return lambda *domains: PaperNode(tmp_path, monkeypatch, *domains)


def with_disks(*disks: Disk) -> Domain:
    return domain(disks=disks)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backup.job.quiesced_snapshots.CLIENT_LIMIT", 0.05)
    monkeypatch.setattr("backup.job.quiesced_snapshots.CLIENT_POLL", 0.01)


def test_a_client_that_an_osd_took_for_dead_is_waited_for_before_the_guest_is_touched(
    make: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backup.job.quiesced_snapshots.CLIENT_LIMIT", 5)
    node = make(with_disks(ROOT))
    node.cluster.watching = {}
    state = node.hypervisor.state
    asked: list[list[str]] = []

    def returning(uuid: str) -> State:
        asked.append([*node.hypervisor.asked])
        node.cluster.watching = {"vms/root": 1}
        return state(uuid)

    monkeypatch.setattr(node.hypervisor, "state", returning)
    assert node.back_up(freeze="never").status is Status.SAVED
    assert asked[0] == []


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED])
def test_an_image_that_the_running_domain_does_not_have_open_is_not_saved_in_place_of_its_own(
    make: MakeNode, state: State
) -> None:
    """Another image took its name, or CEPH_CONF names another cluster; or an OSD restarts."""
    node = make(domain(state=state, disks=(ROOT, DATA)))
    node.cluster.watching = {"vms/root": 1}
    result = node.back_up()
    reason = f"vms/data is open in no client, although the domain is {state.value}"
    assert (result.status, result.reason, result.transient) == (Status.FAILED, reason, True)
    assert "does CEPH_CONF name another cluster" in result.hint
    assert (node.hypervisor.asked, node.output.points) == ([], [])
    node.cluster.watching["vms/data"] = 1
    assert node.back_up().status is Status.SAVED


@pytest.mark.parametrize(
    ("then", "status", "reason"),
    [
        (State.SHUT_OFF, Status.FAILED, "the domain is shut off by now, it was running"),
        (State.BUSY, Status.FAILED, "the domain is starting, stopping or migrating"),
        (State.ELSEWHERE, Status.SKIPPED, "the domain migrated to another node"),
    ],
)
def test_a_domain_that_ends_before_its_images_are_looked_at_is_not_suspected(
    make: MakeNode, monkeypatch: pytest.MonkeyPatch, then: State, status: Status, reason: str
) -> None:
    node = make(with_disks(ROOT))
    node.cluster.watching = {}
    monkeypatch.setattr(node.hypervisor, "state", lambda _: then)
    result = node.back_up()
    assert (result.status, result.transient) == (status, status is Status.FAILED)
    assert result.reason.startswith(reason)
    assert (node.hypervisor.asked, node.output.points) == ([], [])


def test_disks_that_are_only_read_or_come_with_the_next_start_need_no_client(make: MakeNode) -> None:
    read, later = replace(ROOT, written=False), replace(DATA, client="", written=False)
    node = make(with_disks(read, later))
    node.cluster.watching = {}
    assert node.back_up().consistency is Consistency.FILESYSTEM


NEW = {
    "an image": (rbd_disk("vdc", "vms/new"), "disk vdc (vms/new)"),
    "another image in its place": (rbd_disk("vdb", "vms/new"), "disk vdb (vms/new)"),
    "a file": (foreign_disk("vdc", "/x.raw"), "disk vdc (/x.raw)"),
    "an image that cannot be saved": (broken_disk("vdc", "vms/x"), "disk vdc (vms/x)"),
    "a shared directory": (foreign_disk("filesystem:data", "/srv/a"), "filesystem:data (/srv/a)"),
}


@pytest.mark.parametrize("case", NEW)
def test_a_disk_that_is_attached_during_a_slow_freeze_fails_the_job_which_is_retried(
    make: MakeNode, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    new, titled = NEW[case]
    node = make(with_disks(ROOT, DATA))
    others = [one for one in (ROOT, DATA) if one.target != new.target]

    freeze = node.hypervisor.freeze

    def slow_freeze(*arguments: Any) -> int:
        node.hypervisor.listed = with_disks(*others, new)
        return freeze(*arguments)

    monkeypatch.setattr(node.hypervisor, "freeze", slow_freeze)
    result = node.back_up()
    reason = f"{titled}: attached or changed while the snapshots were made"
    assert (result.status, result.reason, result.transient) == (Status.FAILED, reason, True)
    assert node.output.points == []
    node.cluster.snapshots["vms/new"] = {"foreign"}
    node.cluster.watching["vms/new"] = 1
    if "cannot" not in case:
        assert node.back_up().status is Status.SAVED


def _detached(node: PaperNode) -> None:
    node.hypervisor.listed = with_disks(ROOT)


def _ejected(node: PaperNode) -> None:
    node.hypervisor.listed = with_disks(ROOT, DATA, Disk("sda", "/x.iso", skipped="a cdrom"))


def _undefined(node: PaperNode) -> None:
    node.hypervisor.gone = True


@pytest.mark.parametrize("change", [_detached, _ejected, _undefined])
def test_a_disk_that_was_detached_a_medium_or_a_domain_that_has_ended_fails_no_job(
    make: MakeNode, monkeypatch: pytest.MonkeyPatch, change: Callable[[PaperNode], None]
) -> None:
    node = make(with_disks(ROOT, DATA))
    resume = node.hypervisor.resume

    def resumed(one: Domain) -> None:
        resume(one)
        change(node)

    monkeypatch.setattr(node.hypervisor, "resume", resumed)
    assert node.back_up(freeze="never").status is Status.SAVED
    assert node.output.saved == {"vda": "vms/root", "vdb": "vms/data"}


def test_the_domain_is_listed_again_only_once_it_runs(
    make: MakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make(with_disks(ROOT))
    listing = node.hypervisor.domain
    frozen: list[bool] = []

    def domain_now(uuid: str, check_stop: Callable[[], None] = lambda: None) -> Domain:
        frozen.append(node.hypervisor.frozen)
        return listing(uuid, check_stop)

    monkeypatch.setattr(node.hypervisor, "domain", domain_now)
    monkeypatch.setattr(node.hypervisor, "state", lambda uuid: listing(uuid).state)
    monkeypatch.setattr(node.hypervisor, "instance", lambda uuid: listing(uuid).instance)
    assert node.back_up().status is Status.SAVED
    assert frozen
    assert not any(frozen), "a frozen guest waits"
