"""Snapshots of ours that no domain can claim are found on any image of the pools, and removed by cleanup."""

from __future__ import annotations

import shlex
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


def test_a_base_that_its_killed_run_has_not_renamed_stays(saved: Node, lab: Lab) -> None:
    (name,) = snapshot_names(lab, SPEC)
    early = name.replace(".kept.", ".")
    lab.rbd("snap", "rename", f"{SPEC}@{name}", f"{SPEC}@{early}")
    lab.undefine_domain(NAME)
    for node_cleanup in (saved.run, saved.run_elsewhere):
        assert node_cleanup("cleanup").returncode == 0
        assert snapshot_names(lab, SPEC) == [early]
    assert saved.run("cleanup", "--all").returncode == 0
    assert not snapshot_names(lab, SPEC)


def test_nothing_is_removed_while_the_repository_does_not_answer(saved: Node, lab: Lab) -> None:
    lab.undefine_domain(NAME)
    repository = saved.constants["RESTIC_REPOSITORY"]
    saved.constants["RESTIC_REPOSITORY"] = f"{repository}-away"
    done = saved.run("cleanup", "--all")
    assert done.returncode == 0, done.stderr
    assert "as the restore points cannot be listed" in done.stderr
    assert snapshot_names(lab, SPEC)
    saved.constants["RESTIC_REPOSITORY"] = repository
    assert saved.run("cleanup", "--all").returncode == 0
    assert not snapshot_names(lab, SPEC)


def test_a_name_that_no_run_has_stays_and_the_recommended_command_removes_it(saved: Node, lab: Lab) -> None:
    name = f"virt-rbd-backup.{uuid4()}.20261399T996199Z-abcd"
    for where in (SPEC, SECOND):
        lab.rbd("snap", "create", "--no-progress", f"{where}@{name}")
    lab.undefine_domain(NAME)
    lab.rbd("trash", "mv", SECOND)
    identity = lab.rbd("trash", "ls", "--all", "vms").decode().split()[0]
    try:
        done = saved.run("cleanup", "--all")
        assert done.returncode == 0, done.stderr
        hints = [line.partition("if nothing needs it: rbd ")[2] for line in done.stderr.splitlines()]
        for hint in filter(None, hints):
            lab.rbd(*shlex.split(hint.rstrip(")")))
    finally:
        lab.rbd("trash", "restore", f"vms/{identity}")
    assert not snapshot_names(lab, SPEC)
    assert not snapshot_names(lab, SECOND)


def test_a_mirror_that_is_not_primary_is_passed_over(saved: Node, lab: Lab) -> None:
    lab.undefine_domain(NAME)
    lab.rbd("mirror", "pool", "enable", "vms", "image")
    try:
        lab.rbd("mirror", "image", "enable", SPEC, "snapshot")
        lab.rbd("mirror", "image", "demote", SPEC)
        done = saved.run("cleanup", "--all")
        assert f" of {SPEC} " not in done.stderr, done.stderr
        assert not snapshot_names(lab, SECOND)
        assert f"image {SPEC}: " not in saved.run("check").stdout
    finally:
        lab.rbd("mirror", "image", "promote", "--force", SPEC)
        lab.rbd("mirror", "image", "disable", "--force", SPEC)
        lab.rbd("mirror", "pool", "disable", "vms")
    assert snapshot_names(lab, SPEC)
