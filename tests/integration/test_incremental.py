"""Only what has changed is read, and what is saved is the whole image all the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.changing_domain import NAME, changing_domain
from tests.integration.node import Node, snapshot_names
from tests.integration.saving import pieces_read, saved, write
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, MIB, WEB
from tests.unit.hook_files import HookFiles

ROUNDS = 10
SPEC = f"vms/{ARCHIVE}"
STREAMING = "restic"
WHOLE, NOTHING = (3, 3), (0, 3)  # segments of old01 that are read, and all that are not holes


@pytest.fixture
def incremental(node: Node) -> Iterator[Node]:
    """A node that keeps snapshots, all of which are gone in the end."""
    node.constants["OUTPUT"] = "restic_incremental"
    yield node
    assert node.run("cleanup", "--all").returncode == 0


def test_after_any_changes_every_image_is_saved_bit_for_bit(
    incremental: Node, lab: Lab, tmp_path: Path
) -> None:
    counts = []
    with changing_domain(lab) as domain:
        for number in range(ROUNDS):
            said = saved(incremental, NAME, FULL_READ_DAYS=0)
            counts += [pieces_read(said, target) for target in ("vda", "vdb", "vdc", "vdd", "vde")]
            domain.require_saved(incremental, tmp_path / "restored")
            shutil.rmtree(tmp_path / "restored")
            if number == 3:
                domain.roll_back("vda")
            if number == 5:
                domain.flatten("vde")
            domain.change()
        assert incremental.run("cleanup", "--all").returncode == 0
    later = counts[5:]
    assert sum(read for read, _ in later) < sum(count for _, count in later), "not everything was read again"


def test_unchanged_data_is_not_read_and_one_base_snapshot_stays(incremental: Node, lab: Lab) -> None:
    assert pieces_read(saved(incremental, ARCHIVE)) == WHOLE
    (first,) = snapshot_names(lab, SPEC)
    assert pieces_read(saved(incremental, ARCHIVE)) == NOTHING
    (second,) = snapshot_names(lab, SPEC)
    assert first != second
    assert "kept" in second
    write(lab, MIB, b"changed")
    assert pieces_read(saved(incremental, ARCHIVE)) == (1, 3)
    assert incremental.run("verify", ARCHIVE).returncode == 0


@pytest.mark.parametrize(("output", "backups"), [("restic_incremental", 1), (STREAMING, 2)])
def test_how_often_restic_is_called_for_a_domain_with_one_disk(
    incremental: Node, output: str, backups: int
) -> None:
    saved(incremental, ARCHIVE, OUTPUT=output)
    calls, script = incremental.directory / "calls", incremental.directory / "counting"
    script.write_text(f'#!/bin/sh\necho "$*" >>{calls}\nexec restic "$@"\n')
    script.chmod(0o755)
    saved(incremental, ARCHIVE, OUTPUT=output, RESTIC_BINARY=str(script))
    words = calls.read_text().split()
    assert [words.count(one) for one in ("backup", "dump", "unlock")] == [backups, 0, 0]
    assert words.count("snapshots") == 2, "at the beginning and at the end of the run"


def test_another_node_goes_on_where_the_first_left_off(incremental: Node) -> None:
    saved(incremental, ARCHIVE)
    done = incremental.run_elsewhere("backup", ARCHIVE)
    assert pieces_read(done.stderr) == NOTHING


def test_without_its_snapshot_or_its_restore_point_everything_is_read(incremental: Node, lab: Lab) -> None:
    saved(incremental, ARCHIVE)
    lab.rbd("snap", "purge", "--no-progress", SPEC)
    assert pieces_read(saved(incremental, ARCHIVE)) == WHOLE
    for snapshot in incremental.snapshots("virt-rbd-backup"):
        incremental.restic("forget", snapshot["id"])
    said = saved(incremental, ARCHIVE)
    assert pieces_read(said) == WHOLE
    assert ": full read, there is no base snapshot of a previous backup" in said
    assert len(snapshot_names(lab, SPEC)) == 1, "what no restore point is of is removed"


def test_an_image_under_another_name_is_the_same_and_another_image_of_its_name_is_not(
    incremental: Node, lab: Lab
) -> None:
    saved(incremental, ARCHIVE)
    lab.rbd("rename", SPEC, "vms/moved")
    try:
        lab.create_image(SPEC, 100 * MIB)
        assert ": full read, " in saved(incremental, ARCHIVE)
        assert incremental.run("cleanup", "--all").returncode == 0
        lab.delete_image(SPEC)
    finally:
        lab.rbd("rename", "vms/moved", SPEC)
    assert pieces_read(saved(incremental, ARCHIVE)) == NOTHING, "its own restore point is still there"


def test_a_repository_that_lost_data_and_was_repaired_costs_one_full_read(
    incremental: Node, lab: Lab
) -> None:
    incremental.constants["MAX_FILE_SIZE"] = 0  # without the guest's kernel, the manifest's pack is small
    write(lab, MIB, os.urandom(MIB))
    saved(incremental, ARCHIVE)
    (first,) = incremental.snapshots("definition")
    packs = [*(incremental.repository / "data").rglob("?" * 64)]
    lost = [pack for pack in packs if pack.stat().st_size > MIB // 2]
    assert lost
    for pack in lost:
        pack.unlink()
    incremental.restic("rebuild-index")
    said = saved(incremental, ARCHIVE)
    assert f"error: {ARCHIVE}: failed: the repository has lost data of the previous backup" in said
    assert pieces_read(said) == WHOLE
    assert pieces_read(saved(incremental, ARCHIVE)) == NOTHING
    assert incremental.run("verify", ARCHIVE).returncode == 0
    incremental.restic("forget", first["id"])  # its manifest is lost with its data


def test_all_is_read_again_after_some_days(incremental: Node) -> None:
    saved(incremental, ARCHIVE, FULL_READ_DAYS=30)
    assert pieces_read(saved(incremental, ARCHIVE, FULL_READ_DAYS=30)) == NOTHING


def test_a_change_that_ceph_does_not_list_is_found_by_the_spot_check(incremental: Node, lab: Lab) -> None:
    saved(incremental, ARCHIVE)
    write(lab, MIB, b"missed")
    lying(incremental)
    said = saved(incremental, ARCHIVE)
    assert "4194304 bytes at 0 differ from what was saved, although Ceph reports them as unchanged" in said
    assert pieces_read(said) == WHOLE
    assert incremental.run("verify").returncode == 0


def test_a_missed_change_is_found_by_verify_while_the_base_snapshot_exists(
    incremental: Node, lab: Lab
) -> None:
    saved(incremental, ARCHIVE)
    write(lab, MIB, b"missed too")
    lying(incremental, "import random; random.sample = lambda population, k: []")
    assert pieces_read(saved(incremental, ARCHIVE)) == NOTHING
    incremental.environment = {}
    done = incremental.run("verify")
    assert done.returncode == 3
    assert "differs from what was saved: 4194304 bytes at offset 0 (object 0)" in done.stderr
    done = incremental.run("verify", CEPH_CONF="/nowhere")
    assert (done.returncode, "comparing with checksums, not with base snapshots" in done.stderr) == (0, True)


def lying(node: Node, *lines: str) -> None:
    """Have librbd say from now on that nothing has changed between snapshots."""
    patch = """
import rbd
listed = rbd.Image.diff_iterate
class Image(rbd.Image):
    def diff_iterate(self, offset, length, since, note, *rest):
        if since is None:
            listed(self, offset, length, since, note, *rest)
rbd.Image = Image
"""
    modules = node.directory / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text("\n".join((patch, *lines)))
    node.environment["PYTHONPATH"] = str(modules)


def test_the_outputs_can_take_turns_on_one_repository(incremental: Node, lab: Lab) -> None:
    saved(incremental, ARCHIVE)
    (kept,) = snapshot_names(lab, SPEC)
    saved(incremental, ARCHIVE, OUTPUT=STREAMING)
    assert snapshot_names(lab, SPEC) == [kept]
    for output in (STREAMING, "restic_incremental"):
        assert incremental.run("verify", "--at", kept.rpartition(".")[2], OUTPUT=output).returncode == 0
        assert incremental.run("verify", OUTPUT=output).returncode == 0
    assert pieces_read(saved(incremental, ARCHIVE)) == NOTHING


def test_a_running_domain_is_restored_and_its_drill_boots(incremental: Node, lab: Lab) -> None:
    saved(incremental, WEB)
    lab.wait_for_ticks(WEB, beyond=lab.ticks(WEB))
    assert pieces_read(saved(incremental, WEB))[0] < 16
    done = incremental.run("drill", WEB, "--boot", DRILL_POOL="ssd")
    assert done.returncode == 0, done.stderr


def test_hooks_after_the_job_have_the_mounts_of_those_before_the_freeze(incremental: Node) -> None:
    files = HookFiles(incremental.directory)
    for moment in ("before-freeze", "after-job"):
        files.add(f"{moment}.d/x", f"readlink /proc/self/ns/mnt >{incremental.directory}/{moment}")
    saved(incremental, WEB, HOOKS=str(files.directory))
    before, after = ((incremental.directory / name).read_text() for name in ("before-freeze", "after-job"))
    assert before == after


def test_base_snapshots_are_listed_by_check_and_removed_on_demand(incremental: Node, lab: Lab) -> None:
    saved(incremental, ARCHIVE)
    assert incremental.run("cleanup").returncode == 0
    (kept,) = snapshot_names(lab, SPEC)
    told = incremental.run("check", OUTPUT=STREAMING).stdout
    assert kept in told
    assert "main.py cleanup --all" in told
    done = incremental.run("cleanup", "--all")
    assert f"removed base snapshot {kept}" in done.stderr
    assert snapshot_names(lab, SPEC) == []
