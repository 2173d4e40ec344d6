"""moving_domain.py: what libvirt reports of a copy, and with which flags it is asked."""

from __future__ import annotations

from typing import Any

import libvirt
import pytest

from backup.errors import DomainGone
from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.moving_domain import MovingDomain, RunningDisk
from backup.model import State

from ..samples import UUID

DISK = "<disk><source protocol='rbd' name='{}'/>{}<target dev='{}'/></disk>"
XML = (
    "<domain><devices>"
    + DISK.format("vms/a.overlay", "<mirror job='copy' ready='yes'><source name='vms/a'/></mirror>", "vda")
    + DISK.format("vms/b.overlay", "<mirror job='copy'/>", "vdb")
    + DISK.format("vms/c", "<backingStore><source name='below'/></backingStore>", "vdc")
    + "</devices></domain>"
)


class Handle:
    """A virDomain that records what it is asked for."""

    def __init__(self) -> None:
        self.now: list[int] = [libvirt.VIR_DOMAIN_RUNNING, 0]
        self.calls: list[tuple[Any, ...]] = []
        self.job: dict[str, int] = {}

    def state(self) -> list[int]:
        return self.now

    def hasManagedSaveImage(self) -> int:  # noqa: N802 - libvirt's name
        return 0

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        return XML

    def blockJobInfo(self, _target: str) -> dict[str, int]:  # noqa: N802
        return self.job

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))


@pytest.fixture
def handle() -> Handle:
    return Handle()


@pytest.fixture
def domain(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> MovingDomain:
    hypervisor = object.__new__(Hypervisor)
    monkeypatch.setattr(hypervisor, "handle", lambda _uuid: handle)
    return MovingDomain(hypervisor, UUID)


def test_the_disks_have_their_images_and_how_far_their_copies_are(domain: MovingDomain) -> None:
    assert domain.disks() == {
        "vda": RunningDisk("vms/a.overlay", True, True),
        "vdb": RunningDisk("vms/b.overlay", True, False),
        "vdc": RunningDisk("vms/c", False, False),
    }


def test_a_copy_is_shallow_into_an_image_that_is_there(domain: MovingDomain, handle: Handle) -> None:
    domain.start_copy("vda", "<disk/>")
    domain.pivot("vda")
    domain.cancel_copy("vdb")
    assert handle.calls == [
        ("blockCopy", "vda", "<disk/>", {}, 1 | 2 | 4),  # shallow, reuse external, transient job
        ("blockJobAbort", "vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT),
        ("blockJobAbort", "vdb"),
    ]


def test_without_a_job_nothing_is_copied(domain: MovingDomain, handle: Handle) -> None:
    assert domain.copied_bytes("vda") == (0, 0)
    handle.job = {"cur": 3, "end": 8, "type": 2, "bandwidth": 0}
    assert domain.copied_bytes("vda") == (3, 8)


def test_a_pause_by_a_failed_read_differs_from_an_admin_s(domain: MovingDomain, handle: Handle) -> None:
    handle.now = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]
    assert (domain.state(), domain.paused_by_error()) == (State.PAUSED, False)
    handle.now = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]
    assert (domain.state(), domain.paused_by_error()) == (State.PAUSED, True)


@pytest.mark.parametrize(
    ("why", "by_accident"),
    [
        (libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, True),
        (libvirt.VIR_DOMAIN_SHUTOFF_FAILED, True),
        (libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, False),
        (libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED, False),
    ],
)
def test_a_guest_that_somebody_shut_down_has_not_ended_by_accident(
    domain: MovingDomain, handle: Handle, why: int, by_accident: bool
) -> None:
    handle.now = [libvirt.VIR_DOMAIN_SHUTOFF, why]
    assert domain.ended_by_accident() is by_accident


def test_a_domain_that_is_not_defined_has_no_state(
    domain: MovingDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_uuid: str) -> None:
        raise DomainGone("the domain is no longer defined")

    monkeypatch.setattr(domain.hypervisor, "handle", gone)
    assert domain.state() is None
