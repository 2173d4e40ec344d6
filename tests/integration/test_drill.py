"""A drill has a domain back for a while, proves it, and leaves nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from tests.faults.provoke import restic_script
from tests.integration.node import Node, wait_until
from tests.integration.test_verify import ALTERED
from tests.lab import Lab, RbdDisk
from tests.lab.sample import ARCHIVE, DATABASE, MEDIA, MIB, WEB, make_image


@pytest.fixture(autouse=True)
def nothing_stays(node: Node, lab: Lab) -> Iterator[None]:
    node.constants["DRILL_POOL"] = "ssd"
    before = (lab.rbd("ls", "ssd"), lab.virsh("list", "--all", "--name"))
    yield
    assert (lab.rbd("ls", "ssd"), lab.virsh("list", "--all", "--name")) == before


def test_a_guest_boots_from_its_backup_and_its_agent_answers(node: Node) -> None:
    assert node.run("backup", WEB).returncode == 0
    done = node.run("drill", WEB, "--boot")
    assert done.returncode == 0, done.stderr
    assert f"drill of {WEB} passed" in done.stdout
    assert f"{WEB}: booted in" in done.stderr
    assert node.run("backup", WEB).returncode == 0
    assert node.report()["domains"][WEB]["last_drill"] > "2020"


def test_a_guest_whose_cdrom_is_gone_boots_with_an_empty_drive(node: Node, lab: Lab) -> None:
    iso = str(node.directory / "gone.iso")
    lab.virsh("attach-disk", WEB, iso, "sda", "--type", "cdrom", "--targetbus", "sata", "--config")
    try:
        assert node.run("backup", WEB).returncode == 0
    finally:
        lab.virsh("detach-disk", WEB, "sda", "--config")
    done = node.run("drill", WEB, "--boot")
    assert done.returncode == 0, done.stderr
    assert f"the medium {iso} of cdrom sda, which starts empty" in done.stderr
    assert f"{WEB}: booted in" in done.stderr


def test_a_guest_without_an_agent_is_not_said_to_have_booted(node: Node) -> None:
    assert node.run("backup", DATABASE).returncode == 0
    done = node.run("drill", DATABASE, "--boot", DRILL_BOOT_TIMEOUT=3)
    assert done.returncode == 0, done.stderr
    assert "boot not confirmed, as the guest has no agent" in done.stderr
    assert "booted in" not in done.stderr


def test_nothing_is_written_into_the_pool_that_production_has_its_data_in(node: Node, lab: Lab) -> None:
    make_image(lab, "vms/pooled01", 8 * MIB, {0: MIB}, "--data-pool", "ssd")
    lab.define_domain("pooled01", [RbdDisk("vda", "vms/pooled01")])
    try:
        assert node.run("backup", "pooled01").returncode == 0
        place = f"vms/{lab.virsh('domuuid', 'pooled01').strip()}.vda.virt-rbd-backup.restoring"
        look = f"rbd --conf {lab.ceph_conf} info --format json {place} >{node.directory}/info"
        script = restic_script(node, f'case "$*" in *dump*vda.img*) {look};; esac')
        done = node.run("drill", DRILL_POOL="vms", RESTIC_BINARY=script)
        assert done.returncode == 0, done.stderr
        assert "data_pool" not in json.loads((node.directory / "info").read_text())
    finally:
        lab.undefine_domain("pooled01")
        lab.delete_image("vms/pooled01")


def test_each_domain_has_its_turn(node: Node) -> None:
    assert node.run("backup", ARCHIVE, MEDIA, DATABASE).returncode == 0
    told = [node.run("drill").stdout.split()[2] for _ in range(3)]
    assert sorted(told) == sorted([ARCHIVE, MEDIA, DATABASE])


def test_an_image_that_differs_from_what_was_saved_fails_the_drill(node: Node) -> None:
    assert node.run("backup", ARCHIVE).returncode == 0
    done = node.run("drill", RESTIC_BINARY=restic_script(node, ALTERED))
    assert done.returncode == 3
    assert "differs from what was saved" in done.stderr
    assert node.run("backup", ARCHIVE).returncode == 0
    archive = node.report()["domains"][ARCHIVE]
    assert (archive["last_drill"], "object 10" in archive["proof_failure"]) == (None, True)


def test_a_guest_that_does_not_boot_in_time_fails_the_drill(node: Node) -> None:
    assert node.run("backup", WEB).returncode == 0
    done = node.run("drill", WEB, "--boot", DRILL_BOOT_TIMEOUT=1)
    assert done.returncode == 3
    assert "did not answer within 1 s" in done.stderr


def test_without_a_pool_it_is_said_which_constant_to_set(node: Node) -> None:
    done = node.run("drill", DRILL_POOL="")
    assert (done.returncode, "DRILL_POOL is not set" in done.stderr) == (2, True)


def test_an_interrupted_drill_leaves_no_guest_and_no_image(node: Node, lab: Lab) -> None:
    assert node.run("backup", DATABASE).returncode == 0
    # without an agent: the drill does not end before it is interrupted
    with node.started("drill", DATABASE, "--boot") as process:
        wait_until(lambda: f"{DATABASE}-drill" in lab.virsh("list", "--name"), 60, "the guest is started")
        (listed,) = [one for one in json.loads(node.run("list", "--json").stdout) if "-drill" in one["name"]]
        assert not listed["selected"], listed
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output


def test_a_killed_drill_leaves_no_guest_and_the_next_one_removes_its_images(node: Node, lab: Lab) -> None:
    assert node.run("backup", WEB).returncode == 0
    with node.started("drill", WEB, "--boot") as process:
        wait_until(lambda: f"{WEB}-drill" in lab.virsh("list", "--name"), 60, "the guest is started")
        process.kill()
    wait_until(lambda: f"{WEB}-drill" not in lab.virsh("list", "--name"), 60, "libvirt has ended the guest")
    wait_until(lambda: node.run("drill", WEB).returncode == 0, 60, "the killed one's clients are forgotten")
