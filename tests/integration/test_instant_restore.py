"""An instant restore runs a guest out of the repository, and moves it to its images; no write is lost."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.provoke import HeldBackRestic, stopped
from tests.integration.instant_guest import (
    IMAGES,
    NAME,
    RestoredGuest,
    images_dir,
    lost_guest,
    qemus,
    used_bytes,
)
from tests.integration.node import Node, wait_until
from tests.lab import Lab
from tests.lab.sample import MIB
from tests.lab.second_node import second_node

RESTORE = ("restore", NAME, "--instant")
OVERLAYS = [f"{image}.virt-rbd-backup.overlay" for image in IMAGES.values()]
REPLACED = f"{IMAGES['vda']}.virt-rbd-backup.replaced"
OBJECT = 4 << 20  # bytes
FIRMWARE, VARIABLES = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


@pytest.fixture
def guest(node: Node, lab: Lab, tmp_path: Path) -> Iterator[RestoredGuest]:
    """A guest with two disks, saved, then lost; what the test has made of it is removed."""
    node.constants["DRILL_DIR"] = str(images_dir(tmp_path))
    with lost_guest(node, lab) as guest:
        yield guest


@contextmanager
def filling(node: Node, guest: RestoredGuest, *options: str) -> Iterator[HeldBackRestic]:
    """Have an instant restore that has restored vda, and waits with vdb, while the guest writes."""
    restic = HeldBackRestic(node, "vdb.img")
    complete = REPLACED if "--force" in options else IMAGES["vda"]
    with node.started(*RESTORE, *options, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        wait_until(lambda: complete in guest.images(), 60, "vda is restored")
        wait_until(lambda: guest.ticks_since(guest.saved_at + 5), 120, "the guest writes")
        yield restic
        process.kill()
        process.wait()
    restic.let_go()


@pytest.mark.parametrize("output", ["restic", "restic_incremental"])
def test_a_lost_guest_runs_at_once_and_ends_on_its_images_as_after_a_plain_restore(
    node: Node, lab: Lab, tmp_path: Path, output: str
) -> None:
    node.constants.update(OUTPUT=output, DRILL_DIR=str(images_dir(tmp_path)))
    with lost_guest(node, lab, autostart=True) as guest:
        done = node.run(*RESTORE)
        assert done.returncode == 0, done.stderr
        paused = re.search(rf"{NAME}: the guest was paused for (\d+\.\d+) s", done.stderr)
        assert paused, done.stderr
        assert float(paused[1]) < 10
        for text in ("restored to vms/instant01-a", "all images are restored; moving the guest to them"):
            assert text in done.stderr, done.stderr
        guest.require_on_images()
        assert "Autostart:      enable" in lab.virsh("dominfo", NAME)
        guest.require_no_gap()
    assert list((tmp_path / "images").iterdir()) == []


def test_the_guest_does_not_wait_for_its_images(node: Node, lab: Lab, guest: RestoredGuest) -> None:
    restic = HeldBackRestic(node, "vda.img")
    with node.started(*RESTORE, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        wait_until(lambda: is_answering(lab), 300, "its agent answers")
        assert IMAGES["vda"] not in guest.images()
        restic.let_go()
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    guest.require_on_images()


def is_answering(lab: Lab) -> bool:
    return NAME in lab.virsh("list", "--name").split() and lab.hypervisor.agent_answers(NAME)


def test_its_images_stay_thin_although_the_guest_trims(node: Node, lab: Lab, guest: RestoredGuest) -> None:
    restic = HeldBackRestic(node, "vdb.img")
    with node.started(*RESTORE, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        wait_until(lambda: is_answering(lab), 120, "its agent answers")
        lab.virsh("domfstrim", NAME)
        restic.let_go()
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert used_bytes(lab) <= guest.used + 3 * OBJECT
    guest.require_on_images()
    guest.require_no_gap()


def test_a_guest_whose_memory_is_saved_meanwhile_goes_on_with_it(
    node: Node, lab: Lab, guest: RestoredGuest
) -> None:
    restic = HeldBackRestic(node, "vdb.img")
    with node.started(*RESTORE, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        wait_until(lambda: guest.ticks_since(guest.saved_at + 5), 120, "the guest writes")
        lab.virsh("managedsave", NAME)
        lab.console_log(NAME).unlink()
        restic.let_go()
        output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert "the guest was saved (virsh managedsave)" in output
    guest.require_on_images()
    assert "lab: writing to" not in lab.console_log(NAME).read_text(errors="replace"), "it has booted again"
    guest.require_no_gap()


def test_a_copy_runs_beside_the_domain_without_a_network(node: Node, lab: Lab, guest: RestoredGuest) -> None:
    done = node.run(*RESTORE)
    assert done.returncode == 0, done.stderr
    words = ("--suffix", "-copy", "--name", "instant01-copy", "--new-uuid", "--no-network")
    copy = guest.copy("instant01-copy")
    try:
        done = node.run(*RESTORE, *words)
        assert done.returncode == 0, done.stderr
        images = {target: f"{image}-copy" for target, image in IMAGES.items()}
        assert copy.state == "running"
        assert copy.sources() == copy.sources("--inactive") == list(images.values())
        assert guest.state == "running"
        assert guest.sources() == list(IMAGES.values())
        assert copy.records() == []
    finally:
        copy.remove()


def test_an_interrupted_one_is_known_to_all_commands_and_none_of_them_removes_anything(
    node: Node, guest: RestoredGuest
) -> None:
    with filling(node, guest):
        twice = node.run(*RESTORE)
        assert (twice.returncode, "the domain is being restored" in twice.stderr) == (1, True), twice.stderr
        running = node.run("status", NAME)
        assert "instant restore on" in running.stdout, running.stdout
        backup = node.run("backup", NAME)
        assert backup.returncode == 0, backup.stderr
        assert "an instant restore of it is under way" in backup.stderr
    there = guest.images()
    assert {*OVERLAYS, IMAGES["vda"]} <= {*there}
    listed = json.loads(node.run("list", "--json").stdout)
    (found,) = [one for one in listed if one["name"] == NAME]
    assert "an instant restore of it is under way" in found["reason"]
    wait_until(lambda: "interrupted on" in node.run("status", NAME).stdout, 60, "its lock has expired")
    status, checked = node.run("status", NAME).stdout, node.run("check").stdout
    for text in (status, checked):
        assert "1 of 2 images restored, 0 of 2 disks moved" in text, text
        assert f"`main.py restore {NAME} --instant` continues it" in text
    assert node.run("backup", INCLUDE_DOMAINS=[NAME]).returncode == 0
    skipped = node.report()["domains"][NAME]
    assert skipped["status"] == "skipped"
    assert "an instant restore of it is under way" in skipped["reason"]
    cleaned = node.run("cleanup", "--all")
    assert cleaned.returncode == 0, cleaned.stderr
    assert "nothing is removed of the instant restore" in cleaned.stderr
    plain = node.run("restore", NAME, "--force")
    assert (plain.returncode, "has not ended" in plain.stderr) == (1, True), plain.stderr
    assert {*OVERLAYS, IMAGES["vda"]} <= {*guest.images()}
    done = node.run(*RESTORE)
    assert done.returncode == 0, done.stderr
    assert "vda (vms/instant01-a) restored" not in done.stderr, "it was complete"
    guest.require_on_images()
    guest.require_no_gap()


def test_aborted_its_writes_stay_and_the_same_command_continues(node: Node, guest: RestoredGuest) -> None:
    with filling(node, guest):
        printed = guest.lab.ticks(NAME)
    done = node.run(*RESTORE, "--abort")
    assert done.returncode == 0, done.stderr
    assert guest.state == "shut off"
    assert f"is in {OVERLAYS[0]}, a qcow2 image over vms/instant01-a" in done.stderr
    assert {*OVERLAYS} <= {*guest.images()}
    assert "instant restore aborted" in node.run("status", NAME).stdout
    done = node.run(*RESTORE)
    assert done.returncode == 0, done.stderr
    guest.require_on_images()
    assert guest.lab.ticks(NAME) > printed
    guest.require_no_gap()


def test_aborted_its_writes_can_be_merged_by_hand(node: Node, guest: RestoredGuest) -> None:
    restic = HeldBackRestic(node, "vdb.img")
    with node.started(*RESTORE, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        wait_until(lambda: guest.ticks_since(guest.saved_at + 5), 120, "the guest writes")
        with stopped(qemus(NAME)[0].pid):  # or the guest might be moved to its images before the kill
            restic.let_go()
            wait_until(lambda: {*IMAGES.values()} <= {*guest.images()}, 60, "both are restored")
            process.kill()
            process.wait()
    assert node.run(*RESTORE, "--abort").returncode == 0
    for overlay, image in zip(OVERLAYS, IMAGES.values()):
        if overlay in guest.images():
            node.shell(f"qemu-img commit -q rbd:{overlay}", node.directory)
            assert image in guest.images()
    guest.require_no_gap()


def test_aborted_and_discarded_nothing_of_it_is_left(node: Node, guest: RestoredGuest) -> None:
    with filling(node, guest):
        pass
    done = node.run(*RESTORE, "--abort", "--discard")
    assert done.returncode == 0, done.stderr
    assert guest.images() == guest.records() == []
    assert NAME not in guest.lab.virsh("list", "--all", "--name").split()
    done = node.run(*RESTORE, "--abort")
    assert (done.returncode, "no instant restore of instant01 is under way" in done.stderr) == (1, True)
    done = node.run(*RESTORE)
    assert done.returncode == 0, done.stderr
    guest.require_on_images()


@pytest.mark.parametrize("discard", [False, True], ids=["continued", "discarded"])
def test_what_it_replaces_is_there_until_all_is_moved(
    node: Node, lab: Lab, guest: RestoredGuest, discard: bool
) -> None:
    for image in IMAGES.values():
        lab.create_image(image, MIB)
    with filling(node, guest, "--force"):
        pass
    assert {*IMAGES.values(), REPLACED} <= {*guest.images()}
    done = node.run(*RESTORE, "--force", *(("--abort", "--discard") if discard else ()))
    assert done.returncode == 0, done.stderr
    if not discard:
        guest.require_on_images()
        guest.require_no_gap()
        return
    assert guest.images() == sorted(IMAGES.values())
    sizes = [json.loads(lab.rbd("info", "--format", "json", image))["size"] for image in IMAGES.values()]
    assert sizes == [MIB, MIB]


def test_a_node_that_is_lost_is_replaced_by_another_one_but_only_then(
    node: Node, lab: Lab, guest: RestoredGuest
) -> None:
    with filling(node, guest):
        pass
    with second_node(lab) as second:
        done = node.run_within(second.within, *RESTORE, RUNTIME_DIR=str(node.directory / "second"))
        assert (done.returncode, "the guest runs elsewhere" in done.stderr) == (1, True), done.stderr
        qemus(NAME)[0].kill()
        wait_until(lambda: guest.state == "shut off", 20, "libvirt has noticed")
        done = node.run_within(second.within, *RESTORE, RUNTIME_DIR=str(node.directory / "second"))
        assert done.returncode == 0, done.stderr
        there = second.virsh("domblklist", NAME).split()
        assert there[1::2] == list(IMAGES.values())
        lab.wait_for_ticks(NAME, beyond=lab.ticks(NAME) + 2)
        printed = lab.ticks(NAME)
        second.virsh("destroy", NAME)
        second.virsh("undefine", NAME)
    assert guest.images() == sorted(IMAGES.values())
    guest.require_no_gap(printed=printed)


def test_an_existing_domain_is_replaced_with_force_only(node: Node, lab: Lab, guest: RestoredGuest) -> None:
    assert node.run(*RESTORE).returncode == 0
    lab.wait_for_ticks(NAME, beyond=lab.ticks(NAME) + 20)
    done = node.run(*RESTORE)
    assert (done.returncode, "already defined" in done.stderr) == (1, True), done.stderr
    done = node.run(*RESTORE, "--force")
    assert (done.returncode, "is running" in done.stderr) == (1, True), done.stderr
    lab.destroy_domain(NAME)
    printed = lab.ticks(NAME)
    lab.console_log(NAME).unlink()
    wait_until(lambda: node.run(*RESTORE, "--force").returncode == 0, 100, "Ceph has forgotten its QEMU")
    guest.require_on_images()
    assert guest.saved_at <= lab.began_at(NAME) < printed, "it is the one of the backup"
    guest.require_no_gap()


def test_what_it_cannot_do_is_refused_with_the_reason(node: Node, lab: Lab, guest: RestoredGuest) -> None:
    for words, text in (
        (("--disk", "vda"), "--instant and --disk exclude each other"),
        (("--discard",), "--discard requires --abort"),
        (("--to-pool", "nowhere"), "there is no pool nowhere"),
    ):
        done = node.run(*RESTORE, *words)
        assert (done.returncode in (1, 2), text in done.stderr) == (True, True), done.stderr
    assert guest.images() == guest.records() == []


@pytest.mark.skipif(not FIRMWARE.exists(), reason="ovmf is not installed")
def test_a_guest_with_uefi_has_its_variables(node: Node, lab: Lab, tmp_path: Path) -> None:
    nvram = tmp_path / f"{NAME}_VARS.fd"
    shutil.copyfile(VARIABLES, nvram)
    loader = f"<loader readonly='yes' type='pflash'>{FIRMWARE}</loader><nvram>{nvram}</nvram></os>"
    node.constants["DRILL_DIR"] = str(images_dir(tmp_path))
    with lost_guest(node, lab, system=loader) as guest:
        saved = nvram.read_bytes()
        nvram.unlink()
        done = node.run(*RESTORE)
        assert done.returncode == 0, done.stderr
        assert len(nvram.read_bytes()) == len(saved)
        guest.require_on_images()
        guest.require_no_gap()
