"""What a domain needs besides its images is restored: its kernel, and the state of its TPM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.node import Node, wait_until
from tests.lab import Lab, RbdDisk
from tests.lab.sample import MIB, make_image, remove_domain

TPM = "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
NAME = "tpm01"
SWTPM = Path("/var/lib/libvirt/swtpm")


@pytest.fixture
def own_kernel(tmp_path: Path, lab: Lab) -> Path:
    (tmp_path / "boot").mkdir()
    path = tmp_path / "boot" / "vmlinuz"
    path.write_bytes((lab.directory / "vmlinuz").read_bytes())
    return path


@pytest.fixture
def guest(lab: Lab, own_kernel: Path) -> Iterator[str]:
    """A running guest with a TPM, and with a kernel of its own."""
    try:
        make_image(lab, f"vms/{NAME}", 64 * MIB, {})
        lab.define_domain(NAME, [RbdDisk("vda", f"vms/{NAME}")], extra_xml=TPM)
        xml = lab.virsh("dumpxml", NAME).replace(str(lab.directory / "vmlinuz"), str(own_kernel))
        lab.virsh("define", "/dev/stdin", stdin=xml.encode())
        lab.start_domain(NAME, wait_for_agent=True)
        yield NAME
    finally:
        for name in lab.virsh("list", "--all", "--name").split():
            if name.startswith(NAME):
                remove_domain(lab, name)
        for image in lab.rbd("ls", "vms").decode().split():
            if image.startswith(NAME):
                lab.delete_image(f"vms/{image}")


def _state(lab: Lab, name: str) -> Path:
    return SWTPM / lab.virsh("domuuid", name).strip() / "tpm2" / "tpm2-00.permall"


@pytest.mark.parametrize("output", ["restic", "restic_incremental"])
def test_a_lost_guest_boots_with_its_kernel_and_tpm(
    node: Node, lab: Lab, guest: str, own_kernel: Path, output: str
) -> None:
    node.constants["OUTPUT"] = output
    path = _state(lab, guest)
    state, kernel = path.read_bytes(), own_kernel.read_bytes()
    assert state
    done = node.run("backup", guest)
    assert done.returncode == 0, done.stderr
    assert node.definition(guest)[f"files{path}"] == state
    _lose(lab, guest, own_kernel)
    assert not path.exists(), "libvirt removes it with the domain"
    done = node.run("restore", guest, "--define")
    assert done.returncode == 0, done.stderr
    assert f"restored the kernel {own_kernel}, which was missing" in done.stderr
    assert (path.read_bytes(), own_kernel.read_bytes()) == (state, kernel)
    lab.start_domain(guest, wait_for_agent=True)


def test_a_copy_and_a_drill_have_the_tpm_of_the_original(
    node: Node, lab: Lab, guest: str, own_kernel: Path
) -> None:
    assert node.run("backup", guest).returncode == 0
    own_kernel.unlink()
    before = sorted(SWTPM.iterdir())
    done = node.run("drill", guest, "--boot", DRILL_POOL="ssd")
    assert done.returncode == 0, done.stderr
    assert "booted in" in done.stderr
    assert (sorted(SWTPM.iterdir()), own_kernel.exists()) == (before, False), "nothing of the drill is left"
    copy = f"{guest}-copy"
    words = ("--suffix", "-copy", "--define", "--name", copy, "--new-uuid")
    done = node.run("restore", guest, *words)
    assert done.returncode == 0, done.stderr
    assert _state(lab, copy).read_bytes() == _state(lab, guest).read_bytes()
    assert own_kernel.exists()
    lab.start_domain(copy, wait_for_agent=True)


def test_a_killed_drill_leaves_nothing_on_its_node_once_it_is_cleaned_up(
    node: Node, lab: Lab, guest: str, own_kernel: Path
) -> None:
    assert node.run("backup", guest).returncode == 0
    own_kernel.unlink()
    before = sorted(SWTPM.iterdir())
    with node.started("drill", guest, "--boot", DRILL_POOL="ssd") as process:
        wait_until(lambda: sorted(SWTPM.iterdir()) != before, 90, "the drill has written the TPM's state")
        process.kill()
    wait_until(lambda: f"{guest}-drill" not in lab.virsh("list", "--name"), 60, "libvirt has ended the guest")
    done = node.run("cleanup")
    assert done.returncode == 0, done.stderr
    assert list((node.directory / "state/written").iterdir()) == []
    assert (sorted(SWTPM.iterdir()), list(own_kernel.parent.iterdir())) == (before, [])
    wait_until(
        lambda: node.run("drill", guest, DRILL_POOL="ssd").returncode == 0, 60, "its clients are forgotten"
    )


def test_the_files_are_restored_by_hand(node: Node, lab: Lab, guest: str, own_kernel: Path) -> None:
    assert node.run("backup", guest).returncode == 0
    path = _state(lab, guest)
    state = path.read_bytes()
    _lose(lab, guest, own_kernel)
    page = (Path(__file__).parents[2] / "res/docs/restore.md").read_text()
    (line,) = [one for one in page.splitlines() if "--strip-components=1" in one]
    node.shell(line.split("#")[0].replace("web01", guest), node.directory)
    assert (path.read_bytes(), own_kernel.exists()) == (state, True)
    node.shell(f"rm -r {path.parents[1]}", node.directory)


def test_a_kernel_that_is_too_large_is_named(node: Node, guest: str, own_kernel: Path) -> None:
    limits = {"MAX_FILE_SIZE": 1000}
    text = f"kernel:{own_kernel} ({own_kernel}) is not backed up: "
    assert text in node.run("check", **limits).stdout
    done = node.run("backup", guest, **limits)
    assert (done.returncode, text in done.stderr) == (0, True), done.stderr
    skipped = json.loads(node.definition(guest)["manifest.json"])["not_covered"]
    assert f"kernel:{own_kernel}" in [one["target"] for one in skipped]
    failed = node.run("backup", guest, UNCOVERED_DISKS="fail", **limits)
    assert (failed.returncode, "cannot be backed up" in failed.stderr) == (3, True)


def _lose(lab: Lab, name: str, kernel: Path) -> None:
    lab.destroy_domain(name)
    lab.undefine_domain(name)
    lab.rbd("snap", "purge", "--no-progress", f"vms/{name}")
    lab.delete_image(f"vms/{name}")
    kernel.unlink()
    kernel.parent.rmdir()
