"""An instant drill boots a guest out of the repository, and leaves nothing, whatever happens to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.node import Node, wait_until
from tests.lab import Lab, LabError, RbdDisk
from tests.lab.sample import ARCHIVE, DATABASE, MIB, WEB

DRILLED = f"{WEB}-drill"
UNCONFIRMED = f"{DATABASE}-drill"  # without an agent: its drill does not end before it is killed
FIRMWARE, VARIABLES = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """DRILL_DIR, which QEMU's user reaches."""
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    directory = tmp_path / "images"
    directory.mkdir(mode=0o711)
    return directory


@pytest.fixture(autouse=True)
def nothing_stays(node: Node, lab: Lab, images: Path) -> Iterator[None]:
    """No guest, no file, no process, no record; and the cluster is as before."""
    node.constants["DRILL_DIR"] = str(images)
    before = cluster(lab), domains(lab)
    yield
    assert (cluster(lab), domains(lab)) == before
    assert list(images.iterdir()) == []
    assert not list((node.directory / "state/written").glob("*"))
    assert not node.processes("restic")


def cluster(lab: Lab) -> list[bytes]:
    """List the images of all pools; and their snapshots are none of a drill."""
    return [lab.rbd("ls", pool) for pool in ("vms", "ssd")]


def domains(lab: Lab) -> set[str]:
    """Name all domains; libvirt lists those that run by their ids, which a restart in a test changes."""
    return {*lab.virsh("list", "--all", "--name").split()}


def record(node: Node, domain: str) -> dict[str, Any]:
    """Give what the node has recorded of a domain's drills."""
    listed: list[dict[str, Any]] = json.loads(node.run("status", domain, "--json").stdout)["domains"]
    (found,) = [one for one in listed if one["name"] == domain]
    return found


def is_running(lab: Lab, name: str = DRILLED) -> bool:
    return name in domains(lab)


@pytest.mark.parametrize("output", ["restic", "restic_incremental"])
def test_a_guest_with_two_disks_boots_out_of_the_repository_without_the_cluster(
    node: Node, lab: Lab, output: str
) -> None:
    node.constants["OUTPUT"] = output
    done = node.run("backup", WEB)
    assert done.returncode == 0, done.stderr
    done = node.run("drill", WEB, "--instant", CEPH_CONF="/nowhere/ceph.conf", DRILL_POOL="")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"instant drill of {WEB} passed; its data were not compared\n"
    assert f"{WEB}: booted out of the repository in" in done.stderr
    assert re.search(r"file systems mounted: .*\(ext4 on vda\)", done.stderr), done.stderr
    assert (record(node, WEB)["drill_kind"], record(node, WEB)["verified"]) == ("instant", None)
    assert lab.ticks(WEB), "the original runs on"
    assert node.run("cleanup", "--all").returncode == 0


def test_without_a_name_the_longest_ago_has_its_turn_and_boot_without_a_pool_is_instant(node: Node) -> None:
    assert node.run("backup", WEB, DATABASE).returncode == 0
    limits = {"DRILL_POOL": "", "DRILL_BOOT_TIMEOUT": 120}
    names = [node.run("drill", "--boot", **limits).stdout.split()[3] for _ in range(2)]
    assert sorted(names) == sorted([WEB, DATABASE])
    done = node.run("drill", "--instant", **limits)
    assert done.stdout.split()[3] == names[0]
    done = node.run("drill", DRILL_POOL="")
    assert (done.returncode, "DRILL_POOL is not set" in done.stderr) == (2, True)


def test_a_guest_without_an_agent_is_not_said_to_have_booted(node: Node) -> None:
    assert node.run("backup", DATABASE).returncode == 0
    done = node.run("drill", DATABASE, "--instant", DRILL_BOOT_TIMEOUT=3)
    assert done.returncode == 0, done.stderr
    assert "boot not confirmed, as the guest has no agent" in done.stderr
    assert "booted out of" not in done.stderr


def test_a_guest_that_does_not_boot_in_time_fails_and_a_passing_one_settles_it(node: Node) -> None:
    assert node.run("backup", WEB).returncode == 0
    done = node.run("drill", WEB, "--instant", DRILL_BOOT_TIMEOUT=1)
    assert (done.returncode, "did not answer within 1 s" in done.stderr) == (3, True)
    assert "did not answer" in record(node, WEB)["proof_failure"]
    assert node.run("drill", WEB, "--instant").returncode == 0
    assert record(node, WEB)["proof_failure"] == ""


@pytest.mark.skipif(not FIRMWARE.exists(), reason="ovmf is not installed")
def test_a_guest_with_uefi_has_its_variables(node: Node, lab: Lab, tmp_path: Path) -> None:
    nvram = tmp_path / "efi01_VARS.fd"
    shutil.copyfile(VARIABLES, nvram)
    lab.create_image("vms/efi01", 64 * MIB)
    lab.define_domain("efi01", [RbdDisk("vda", "vms/efi01")])
    loader = f"<loader readonly='yes' type='pflash'>{FIRMWARE}</loader><nvram>{nvram}</nvram></os>"
    xml = lab.virsh("dumpxml", "efi01").replace("</os>", loader)
    lab.virsh("define", "/dev/stdin", stdin=xml.encode())
    try:
        lab.start_domain("efi01", wait_for_agent=True)
        assert node.run("backup", "efi01").returncode == 0
        done = node.run("drill", "efi01", "--instant")
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in tmp_path.glob("*VARS.fd")) == [nvram.name]
    finally:
        lab.destroy_domain("efi01")
        lab.virsh("undefine", "--keep-nvram", "efi01")
        lab.delete_image("vms/efi01")


def test_a_pack_that_is_missing_fails_it_with_restics_reason(node: Node, tmp_path: Path) -> None:
    assert node.run("backup", WEB).returncode == 0
    copy = tmp_path / "damaged"
    shutil.copytree(node.repository, copy)
    for pack in packs_of(node, f"image=vms/{WEB}-root"):
        (copy / "data" / pack[:2] / pack).unlink()
    began = time.monotonic()
    done = node.run("drill", WEB, "--instant", RESTIC_REPOSITORY=str(copy), DRILL_BOOT_TIMEOUT=900)
    assert done.returncode == 3, done.stderr
    reason = r"(cannot read at offset|the guest needs what the repository has lost: ).*data"
    assert re.search(reason, done.stderr), done.stderr
    assert time.monotonic() - began < 600, "it does not wait for the agent any more"
    assert re.search(reason, record(node, WEB)["proof_failure"])


def packs_of(node: Node, tag: str) -> set[str]:
    """Give the packs with the data of an image."""
    (snapshot,) = node.snapshots(tag)
    tree = json.loads(
        node.restic("cat", "blob", json.loads(node.restic("cat", "snapshot", snapshot["id"]))["tree"])
    )
    blobs = {blob for entry in tree["nodes"] for blob in entry.get("content") or ()}
    found = set()
    for index in node.restic("list", "index").decode().split():
        for pack in json.loads(node.restic("cat", "index", index))["packs"]:
            if blobs & {blob["id"] for blob in pack["blobs"]}:
                found.add(pack["id"])
    return found


MOMENTS: dict[str, Callable[[Node, Lab, Path], object]] = {
    "restic is started": lambda node, _lab, _images: node.processes("restic mount"),
    "the directory is there": lambda _node, _lab, images: list(images.iterdir()),
    "an overlay is there": lambda _node, _lab, images: list(images.glob("*/*.qcow2")),
    "the guest is there": lambda _node, lab, _images: is_running(lab),
    "the guest reads": lambda _node, lab, _images: (
        is_running(lab, UNCONFIRMED) and bytes_read(lab, UNCONFIRMED) > MIB // 64
    ),
}


def bytes_read(lab: Lab, name: str) -> int:
    with suppress(LabError):  # it is just being started
        return int(lab.virsh("domblkstat", name, "vda").split("rd_bytes ")[1].split()[0])
    return 0


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_cleanup_leaves_nothing(node: Node, lab: Lab, images: Path, moment: str) -> None:
    name = DATABASE if moment == "the guest reads" else WEB
    assert node.run("backup", name).returncode == 0
    with node.started("drill", name, "--instant") as process:
        wait_until(lambda: MOMENTS[moment](node, lab, images), 90, moment)
        process.kill()
    wait_until(lambda: not is_running(lab, f"{name}-drill"), 60, "libvirt has ended the guest")
    wait_until(lambda: not node.processes("restic mount"), 60, "the end of its parent has ended it")
    done = node.run("cleanup")
    assert done.returncode == 0, done.stderr
    # restic 0.14 leaves its lock if it is interrupted while it creates it: the next run removes it
    assert node.run("backup", ARCHIVE).returncode == 0


def test_killed_while_libvirt_is_stopped_cleanup_ends_the_guest(node: Node, lab: Lab, images: Path) -> None:
    assert node.run("backup", WEB).returncode == 0
    with node.started("drill", WEB, "--instant") as process:
        wait_until(lambda: is_running(lab), 90, "the guest is there")
        lab.stop_libvirtd()
        process.kill()
    lab.start_libvirtd()
    done = node.run("cleanup")
    assert done.returncode == 0, done.stderr
    assert not is_running(lab)


def test_the_next_drill_removes_what_a_killed_one_left(node: Node, lab: Lab, images: Path) -> None:
    assert node.run("backup", WEB, DATABASE).returncode == 0
    with node.started("drill", WEB, "--instant") as process:
        wait_until(lambda: is_running(lab), 90, "the guest is there")
        process.kill()
    assert list(images.iterdir())
    done = node.run("drill", DATABASE, "--instant", DRILL_BOOT_TIMEOUT=3)
    assert done.returncode == 0, done.stderr
    assert "removed what an interrupted restore or drill left" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_nothing_is_left(
    node: Node, lab: Lab, number: signal.Signals, code: int
) -> None:
    assert node.run("backup", WEB).returncode == 0
    with node.started("drill", WEB, "--instant") as process:
        wait_until(lambda: is_running(lab), 90, "the guest is there")
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output


def test_a_restic_that_is_killed_ends_it_and_proves_nothing(node: Node, lab: Lab) -> None:
    assert node.run("backup", WEB).returncode == 0
    with node.started("drill", WEB, "--instant") as process:
        wait_until(lambda: is_running(lab), 90, "the guest is there")
        for pid in node.processes("restic mount"):
            os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
    assert process.returncode in (1, 3), output
    assert "restic mount was killed by SIGKILL" in output or "cannot read" in output
    wait_until(lambda: not is_running(lab), 60, "its guest has ended with it")


def test_a_restart_of_libvirt_leaves_neither_the_guest_nor_a_record(node: Node, lab: Lab) -> None:
    assert node.run("backup", WEB).returncode == 0
    with node.started("drill", WEB, "--instant") as process:
        wait_until(lambda: is_running(lab), 90, "the guest is there")
        lab.stop_libvirtd()
        lab.start_libvirtd()
        output, _ = process.communicate(timeout=300)
    assert process.returncode in (0, 1), output
    assert record(node, WEB)["proof_failure"] == "", "libvirt's restart proves nothing about the backup"


def test_what_cannot_run_here_is_refused_and_no_failure_of_the_backup(node: Node, lab: Lab) -> None:
    assert node.run("backup", ARCHIVE).returncode == 0
    done = node.run("drill", ARCHIVE, "--instant", DRILL_DIR="/nowhere")
    assert (done.returncode, "cannot use /nowhere (DRILL_DIR)" in done.stderr) == (1, True), done.stderr
    assert record(node, ARCHIVE)["proof_failure"] == ""


def test_two_at_once_do_not_meet(node: Node, lab: Lab) -> None:
    assert node.run("backup", DATABASE).returncode == 0
    with node.started("drill", DATABASE, "--instant", DRILL_BOOT_TIMEOUT=60) as process:
        wait_until(lambda: is_running(lab, UNCONFIRMED), 90, "the guest is there")
        done = node.run("drill", DATABASE, "--instant")
        assert (done.returncode, "is another drill of it running?" in done.stderr) == (1, True), done.stderr
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def test_backups_ignore_the_guest_of_a_drill(node: Node, lab: Lab) -> None:
    assert node.run("backup", DATABASE).returncode == 0
    with node.started("drill", DATABASE, "--instant") as process:
        wait_until(lambda: is_running(lab, UNCONFIRMED), 90, "the guest is there")
        listed = json.loads(node.run("list", "--json").stdout)
        (found,) = [one for one in listed if one["name"] == UNCONFIRMED]
        assert not found["selected"], found
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
