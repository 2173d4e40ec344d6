"""A full cluster, whose guests wait: our snapshots can be removed, and messages name what is full."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.provoke import freeze_status
from tests.integration.node import Node, snapshot_names, wait_until
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, WEB

RATIOS = {"nearfull": ("0.0001", "0.85"), "backfillfull": ("0.0002", "0.9"), "full": ("0.0003", "0.95")}
QUICKLY = {"CEPH_TIMEOUT": 6, "CEPH_STALL_TIMEOUT": 0}


@pytest.fixture
def leftovers(lab: Lab) -> Iterator[dict[str, list[str]]]:
    """A leftover and a base snapshot of two domains, by their images; one runs, the other is shut off."""
    made: dict[str, list[str]] = {}
    for domain, spec in ((ARCHIVE, f"vms/{ARCHIVE}"), (WEB, f"vms/{WEB}-root")):
        uuid = lab.virsh("domuuid", domain).strip()
        made[spec] = [f"virt-rbd-backup.{kind}{uuid}.20200101T000000Z-aaaa" for kind in ("", "kept.")]
        for name in made[spec]:
            lab.rbd("snap", "create", "--no-progress", f"{spec}@{name}")
    yield made
    for spec, names in made.items():
        for name in {*names} & {*snapshot_names(lab, spec)}:
            lab.rbd("snap", "rm", "--no-progress", f"{spec}@{name}")


@pytest.fixture
def full(lab: Lab, leftovers: dict[str, list[str]]) -> Iterator[None]:
    try:
        for name, (tiny, _) in RATIOS.items():
            lab.ceph("osd", f"set-{name}-ratio", tiny)
        wait_until(lambda: "2 pool(s) full" in lab.ceph("health"), 60, "all writes wait, the guests' too")
        yield
    finally:
        for name, (_, usual) in reversed(RATIOS.items()):
            lab.ceph("osd", f"set-{name}-ratio", usual)
        wait_until(lambda: "pool(s) full" not in lab.ceph("health"), 60, "the guests go on")


def test_cleanup_removes_snapshots_of_images_that_nobody_has_locked(
    node: Node, lab: Lab, full: None, leftovers: dict[str, list[str]]
) -> None:
    done = node.run("cleanup", "--all", INCLUDE_DOMAINS=[ARCHIVE], **QUICKLY)
    assert done.returncode == 0, done.stderr
    assert snapshot_names(lab, f"vms/{ARCHIVE}") == []


def test_cleanup_names_the_guest_that_would_have_to_remove_its_snapshots(
    node: Node, lab: Lab, full: None, leftovers: dict[str, list[str]]
) -> None:
    done = node.run("cleanup", "--all", INCLUDE_DOMAINS=[WEB], **QUICKLY)
    assert done.returncode == 3
    assert "pool vms is full: client." in done.stderr
    assert "ceph osd set-full-ratio" in done.stderr


def test_a_backup_fails_before_its_guest_is_touched(node: Node, lab: Lab, full: None) -> None:
    done = node.run("backup", ARCHIVE, **QUICKLY)
    assert done.returncode == 3
    assert "pool vms is full" in node.report()["domains"][ARCHIVE]["reason"]
    done = node.run("backup", WEB, **QUICKLY)
    assert done.returncode == 3
    assert "is full" in node.report()["domains"][WEB]["reason"]
    assert freeze_status(lab, WEB) == "thawed"


def test_check_names_the_full_pool(node: Node, full: None) -> None:
    done = node.run("check")
    assert done.returncode == 1
    assert "pool vms is full" in done.stdout
    assert "cleanup" in done.stdout
