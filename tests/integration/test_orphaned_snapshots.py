"""Snapshots of ours that no domain can claim are found on any image of the pools, and removed by cleanup."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.integration.node import Node, snapshot_names
from tests.lab import Lab, RbdDisk
from tests.lab.sample import MIB

NAME = "orphaned"
SPEC = f"vms/{NAME}"
SECOND = f"vms/{NAME}-second"


@pytest.fixture
def saved(node: Node, lab: Lab) -> Iterator[Node]:
    """A node that has saved a shut-off domain with two images incrementally."""
    node.constants["OUTPUT"] = "restic_incremental"
    for spec in (SPEC, SECOND):
        lab.create_image(spec, 4 * MIB)
    lab.define_domain(NAME, [RbdDisk("vda", SPEC), RbdDisk("vdb", SECOND)])
    done = node.run("backup", NAME)
    assert done.returncode == 0, done.stderr
    assert snapshot_names(lab, SPEC)
    yield node
    if NAME in lab.virsh("list", "--all", "--name"):
        lab.undefine_domain(NAME)
    for spec in (SPEC, SECOND):
        lab.rbd("snap", "purge", "--no-progress", spec)
        lab.delete_image(spec)


def test_base_snapshots_of_an_undefined_domain_are_removed_with_all(saved: Node, lab: Lab) -> None:
    lab.undefine_domain(NAME)
    checked = saved.run("check")
    assert f"WARNING  image {SPEC}: base snapshot" in checked.stdout, checked.stdout + checked.stderr
    assert saved.run_elsewhere("cleanup", "--all").returncode == 0
    assert snapshot_names(lab, SPEC), "for the other node it may be a living domain's"
    assert "stays: this node has no such domain" in saved.run("cleanup").stderr
    done = saved.run("cleanup", "--all")
    assert done.returncode == 0, done.stderr
    assert f"of {SPEC} (domain {NAME}, UUID " in done.stderr
    assert not snapshot_names(lab, SPEC)
    assert not snapshot_names(lab, SECOND)


def test_the_old_base_of_a_domain_with_a_new_uuid_is_removed_and_the_new_one_stays(
    saved: Node, lab: Lab
) -> None:
    lab.undefine_domain(NAME)
    uuid = uuid4()
    lab.define_domain(NAME, [RbdDisk("vda", SPEC), RbdDisk("vdb", SECOND)], uuid=uuid)
    assert saved.run("backup", NAME).returncode == 0
    assert len(snapshot_names(lab, SPEC)) == 2
    done = saved.run("cleanup")
    assert done.returncode == 0, done.stderr
    for spec in (SPEC, SECOND):
        (name,) = snapshot_names(lab, spec)
        assert str(uuid) in name
    assert saved.run("cleanup", "--all").returncode == 0


def test_the_bases_of_detached_disks_and_of_images_in_the_trash_are_removed(saved: Node, lab: Lab) -> None:
    lab.virsh("detach-disk", NAME, "vdb", "--config")
    assert saved.run("cleanup").returncode == 0
    assert snapshot_names(lab, SPEC)
    assert not snapshot_names(lab, SECOND)
    lab.undefine_domain(NAME)
    lab.rbd("trash", "mv", SPEC)
    try:
        done = saved.run("cleanup")
        assert f"{SPEC}, which is in the trash" in done.stderr, done.stderr
    finally:
        identity = lab.rbd("trash", "ls", "--all", "vms").decode().split()[0]
        lab.rbd("trash", "restore", f"vms/{identity}")
    assert not snapshot_names(lab, SPEC)
