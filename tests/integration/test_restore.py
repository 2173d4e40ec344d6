"""A domain comes back from the repository alone."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.provoke import HeldBackRestic, stopped
from tests.integration.node import Node, wait_until
from tests.lab import Lab, RbdDisk
from tests.lab.sample import ARCHIVE, ARCHIVE_SIZE, DATABASE, MIB, WEB, make_image

PAIR = "pair01"  # shut off, two disks
COPY = "copy01"
SUFFIX = "-back"


@pytest.fixture(autouse=True)
def nothing_half_done(lab: Lab) -> Iterator[None]:
    """Remove what a test restored; what was not restored whole must be gone by itself."""
    before = _images(lab)
    yield
    after = _images(lab)
    assert [image for image in after if "virt-rbd-backup" in image] == []
    for name in lab.virsh("list", "--all", "--name").split():
        if name == COPY:
            if lab.virsh("domstate", name).strip() == "running":
                lab.destroy_domain(name)
            lab.undefine_domain(name)
    for image in sorted(after - before):
        lab.delete_image(image)


@pytest.fixture
def pair(lab: Lab) -> Iterator[str]:
    make_image(lab, "vms/pair01-a", 40 * MIB, {0: MIB, 17 * MIB: 9 * MIB}, "--object-size", "1M")
    make_image(lab, "ssd/pair01-b", 300 * MIB, {MIB: 120 * MIB})
    lab.define_domain(PAIR, [RbdDisk("vda", "vms/pair01-a"), RbdDisk("vdb", "ssd/pair01-b")])
    yield PAIR
    lab.undefine_domain(PAIR)
    for image in ("vms/pair01-a", "ssd/pair01-b"):
        lab.delete_image(image)


def test_a_lost_domain_is_restored_and_continues_where_it_was_frozen(node: Node, lab: Lab) -> None:
    lab.wait_for_ticks(WEB, beyond=lab.ticks(WEB))
    assert node.run("backup", WEB).returncode == 0
    uuid, frozen_at = lab.virsh("domuuid", WEB).strip(), lab.ticks(WEB)
    lab.wait_for_ticks(WEB, beyond=frozen_at + 3)
    lab.destroy_domain(WEB)
    lab.undefine_domain(WEB)
    for image in (f"vms/{WEB}-root", f"ssd/{WEB}-data"):
        lab.delete_image(image)
    lab.console_log(WEB).unlink()

    done = node.run("restore", WEB, "--define", "--start")

    assert done.returncode == 0, done.stderr
    assert lab.virsh("domuuid", WEB).strip() == uuid
    assert 0 < lab.began_at(WEB) <= frozen_at, "both disks' counters are those of the frozen moment"
    wait_until(lambda: lab.hypervisor.agent_answers(WEB), 60, "the agent answers")


def test_a_copy_boots_beside_the_domain_and_shares_nothing_with_it(node: Node, lab: Lab) -> None:
    assert node.run("backup", WEB).returncode == 0
    done = node.run("restore", WEB, "--suffix", SUFFIX, "--define", "--name", COPY, "--new-uuid", "--start")
    assert done.returncode == 0, done.stderr
    assert lab.virsh("domuuid", COPY) != lab.virsh("domuuid", WEB)
    sources = {lab.virsh("domblklist", name).split()[-1] for name in (WEB, COPY)}
    assert sources == {f"ssd/{WEB}-data", f"ssd/{WEB}-data{SUFFIX}"}
    wait_until(lambda: lab.hypervisor.agent_answers(COPY), 90, "the copy's agent answers")


NEXT_VDB = """
<disk type='network' device='disk'>
  <driver name='qemu' type='raw'/>
  <source protocol='rbd' name='vms/next'>
    <host name='127.0.0.1' port='6789'/>
    <auth username='libvirt'><secret type='ceph' usage='client.libvirt secret'/></auth>
  </source>
  <target dev='vdb' bus='virtio'/>
</disk>"""


def test_a_disk_gets_the_image_of_the_next_start_and_the_running_one_comes_back_too(
    node: Node, lab: Lab
) -> None:
    make_image(lab, "vms/next", 20 * MIB, {MIB: 3 * MIB})
    before = lab.virsh("dumpxml", "--inactive", "--security-info", WEB)
    lab.virsh("update-device", WEB, "/dev/stdin", "--config", stdin=NEXT_VDB.encode())
    try:
        done = node.run("backup", WEB)
    finally:
        lab.virsh("define", "/dev/stdin", stdin=before.encode())
    assert done.returncode == 0, done.stderr
    saved = {one["target"]: one["image"] for one in node.report()["domains"][WEB]["images"]}
    assert saved == {"vda": f"vms/{WEB}-root", "vdb": f"ssd/{WEB}-data", "vdb.next": "vms/next"}
    done = node.run("restore", WEB, "--suffix", SUFFIX, "--define", "--name", COPY, "--new-uuid")
    assert done.returncode == 0, done.stderr
    assert "vdb: restored, but not in the definition" in done.stderr
    assert lab.virsh("domblklist", COPY).split()[-1] == f"vms/next{SUFFIX}"
    assert _digest(lab, f"vms/next{SUFFIX}") == _digest(lab, "vms/next")
    assert _info(lab, f"ssd/{WEB}-data{SUFFIX}")["size"] == _info(lab, f"ssd/{WEB}-data")["size"]
    lab.delete_image("vms/next")


SHARED = """
<filesystem type='mount' accessmode='mapped'><source dir='/srv'/><target dir='data'/></filesystem>
<shmem name='shared01'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>
<vsock model='virtio'><cid auto='no' address='77'/></vsock>
<graphics type='vnc' port='5977' autoport='no'/>
<interface type='vhostuser'>
  <source type='unix' path='/run/vhost' mode='client'/><model type='virtio'/>
</interface>
<hostdev mode='subsystem' type='pci' managed='no'>
  <source><address domain='0x0000' bus='0x06' slot='0x12' function='0x5'/></source>
</hostdev>
<lease><lockspace>locks</lockspace><key>shared01</key><target path='/srv/leases'/></lease>"""


def test_a_copy_is_defined_without_what_it_would_share_with_the_original(
    node: Node, lab: Lab, pair: str
) -> None:
    lab.undefine_domain(pair)
    lab.define_domain(pair, [RbdDisk("vda", "vms/pair01-a")], extra_xml=SHARED)
    assert node.run("backup", pair).returncode == 0
    done = node.run("restore", pair, "--suffix", SUFFIX, "--define", "--name", COPY, "--new-uuid")
    assert done.returncode == 0, done.stderr
    for shared in ("filesystem:data (/srv)", "shmem:shared01", "hostdev:0000:06:12.5", "lease (shared01)"):
        assert f"removed from the copy's definition: {shared}" in done.stderr
    copied = lab.virsh("dumpxml", COPY)
    for gone in ("<filesystem", "<shmem", "address='77'", "5977", "vhostuser", "<hostdev", "<lease"):
        assert gone not in copied
    assert "<vsock" in copied
    assert "<graphics type='vnc'" in copied


def test_a_domain_that_is_defined_again_starts_with_its_node_as_before(
    node: Node, lab: Lab, pair: str
) -> None:
    lab.virsh("autostart", pair)
    assert node.run("backup", pair).returncode == 0
    lab.undefine_domain(pair)
    done = node.run("restore", pair, "--force", "--define")
    assert done.returncode == 0, done.stderr
    assert "autostart is set again" in done.stderr
    lines = dict(line.split(":", 1) for line in lab.virsh("dominfo", pair).splitlines() if ":" in line)
    assert lines["Autostart"].strip() == "enable"


def test_on_another_node_a_domain_is_restored_bit_for_bit(node: Node, lab: Lab, pair: str) -> None:
    assert node.run("backup", pair).returncode == 0
    done = node.run_elsewhere("restore", pair, "--to-pool", "vms", "--suffix", SUFFIX, LIBVIRT_URI="none:///")
    assert done.returncode == 0, done.stderr
    for original, restored in (("vms/pair01-a", "vms/pair01-a"), ("ssd/pair01-b", "vms/pair01-b")):
        assert _digest(lab, original) == _digest(lab, restored + SUFFIX)
        assert _allocated(lab, restored + SUFFIX) <= _allocated(lab, original) * 1.05
    assert _info(lab, "vms/pair01-a")["order"] == _info(lab, f"vms/pair01-a{SUFFIX}")["order"] == 20


@pytest.mark.parametrize("name", ["disk.raw", "disk.qcow2"])
def test_a_disk_is_restored_to_a_file(node: Node, lab: Lab, tmp_path: Path, name: str) -> None:
    assert node.run("backup", ARCHIVE).returncode == 0
    path = tmp_path / name
    done = node.run("restore", ARCHIVE, "--to-file", str(path))
    assert done.returncode == 0, done.stderr
    raw = tmp_path / "plain"
    command = ["qemu-img", "convert", "-f", path.suffix[1:], "-O", "raw", str(path), str(raw)]
    subprocess.run(command, check=True)
    content = raw.read_bytes()[:ARCHIVE_SIZE]  # qemu-img fills up the last sector
    assert hashlib.sha256(content).hexdigest() == _digest(lab, f"vms/{ARCHIVE}")
    assert path.stat().st_blocks * 512 < 8 * MIB, "holes stay holes"
    assert path.stat().st_mode & 0o077 == 0
    assert sorted(one.name for one in tmp_path.glob("disk*")) == [name]


def test_what_is_there_is_never_overwritten_unasked(node: Node, lab: Lab, tmp_path: Path) -> None:
    assert node.run("backup", ARCHIVE).returncode == 0
    before = _digest(lab, f"vms/{ARCHIVE}")
    file = tmp_path / "there"
    file.write_text("precious")
    for words, told in {
        (): f"image vms/{ARCHIVE} exists",
        ("--to-file", str(file)): f"{file} exists",
        ("--suffix", SUFFIX, "--define"): f"domain {ARCHIVE} (UUID ",
        ("--suffix", SUFFIX, "--define", "--new-uuid"): f"another domain named {ARCHIVE}",
        ("--suffix", SUFFIX, "--define", "--name", COPY): f"domain {ARCHIVE} (UUID ",
        ("--to-pool", "nowhere"): "there is no pool nowhere",
        ("--to-pool", "vms/nowhere"): "hint: rbd namespace create vms/nowhere",
    }.items():
        done = node.run("restore", ARCHIVE, *words)
        assert (done.returncode, told in done.stderr, "hint: " in done.stderr) == (1, True, True), done.stderr
    assert (_digest(lab, f"vms/{ARCHIVE}"), file.read_text()) == (before, "precious")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--at", "20200101"), "no complete restore point"),
        (("--at", "2020-01-01"), "no complete restore point"),
        (("--disk", "vdz"), "has no disk vdz"),
        (("--to-pool", "vms", "--to-image", "vms/x"), "--to-pool and --to-image exclude each other"),
        (("--to-image", "x"), "expected POOL/IMAGE"),
        (("--start",), "--start requires --define"),
        (("--to-file", "/tmp/x", "--define"), "--define and --to-file exclude each other"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_done(
    node: Node, words: tuple[str, ...], told: str
) -> None:
    assert node.run("backup", ARCHIVE).returncode == 0
    done = node.run("restore", ARCHIVE, *words)
    assert (done.returncode, told in done.stderr, "hint: " in done.stderr) == (2, True, True), done.stderr


def test_force_replaces_what_nobody_uses(node: Node, lab: Lab, tmp_path: Path) -> None:
    assert node.run("backup", ARCHIVE).returncode == 0
    before = _digest(lab, f"vms/{ARCHIVE}")
    lab.rbd("resize", "--no-progress", f"vms/{ARCHIVE}", "--size", "200M")
    lab.rbd("snap", "create", "--no-progress", f"vms/{ARCHIVE}@precious")
    done = node.run("restore", ARCHIVE, "--force", "--define")
    assert (done.returncode, "has snapshots (precious)" in done.stderr) == (1, True), done.stderr
    lab.rbd("snap", "purge", "--no-progress", f"vms/{ARCHIVE}")
    done = node.run("restore", ARCHIVE, "--force", "--define")
    assert done.returncode == 0, done.stderr
    assert _digest(lab, f"vms/{ARCHIVE}") == before


def test_images_that_belong_to_saved_memory_are_not_replaced(node: Node, lab: Lab) -> None:
    assert node.run("backup", DATABASE).returncode == 0
    lab.virsh("managedsave", DATABASE)
    before = _digest(lab, f"vms/{DATABASE}")
    try:
        for words in ((), ("--force",)):
            done = node.run("restore", DATABASE, *words)
            assert (done.returncode, f"virsh managedsave-remove {DATABASE} " in done.stderr) == (1, True)
        assert _digest(lab, f"vms/{DATABASE}") == before
        done = node.run("restore", DATABASE, "--suffix", SUFFIX)
        assert (done.returncode, "managedsave" in done.stderr) == (0, False), done.stderr
    finally:
        lab.virsh("start", DATABASE)
        lab.wait_for_ticks(DATABASE, beyond=lab.ticks(DATABASE))


def test_not_even_force_touches_what_is_in_use(node: Node, lab: Lab) -> None:
    assert node.run("backup", DATABASE).returncode == 0
    done = node.run("restore", DATABASE, "--force")
    assert done.returncode == 1
    assert f"image vms/{DATABASE} is in use" in done.stderr
    done = node.run("restore", DATABASE, "--force", "--define", "--suffix", SUFFIX)
    assert done.returncode == 1
    assert f"domain {DATABASE} is running" in done.stderr
    lab.wait_for_ticks(DATABASE, beyond=lab.ticks(DATABASE))


def test_an_incomplete_restore_point_is_refused_and_latest_is_the_newest_complete_one(
    node: Node, lab: Lab
) -> None:
    assert node.run("backup", ARCHIVE).returncode == 0
    uuid = lab.virsh("domuuid", ARCHIVE).strip()
    tags = [f"--tag={tag}" for tag in ("virt-rbd-backup", "run=29990101T000000Z-half", f"uuid={uuid}")]
    half = ["backup", "--stdin", f"--host={ARCHIVE}", "--stdin-filename=vda.img", *tags]
    node.shell(f"echo half | restic {' '.join(half)}", node.directory)
    done = node.run("restore", ARCHIVE, "--at", "29990101", "--suffix", SUFFIX)
    assert (done.returncode, "is incomplete: it has no manifest" in done.stderr) == (2, True)
    done = node.run("restore", ARCHIVE, "--suffix", SUFFIX)
    assert done.returncode == 0, done.stderr
    assert _digest(lab, f"vms/{ARCHIVE}{SUFFIX}") == _digest(lab, f"vms/{ARCHIVE}")


def test_a_restore_point_comes_back_after_its_ids_have_changed_and_is_refused_when_it_lacks_an_image(
    node: Node, lab: Lab, pair: str
) -> None:
    assert node.run("backup", pair).returncode == 0
    before = _images(lab)
    node.restic("tag", "--add", "keep", "--host", pair)
    assert node.run("verify", pair).returncode == 0
    done = node.run("restore", pair, "--suffix", SUFFIX, "--disk", "vda")
    assert done.returncode == 0, done.stderr
    assert _digest(lab, f"vms/pair01-a{SUFFIX}") == _digest(lab, "vms/pair01-a")
    lab.delete_image(f"vms/pair01-a{SUFFIX}")
    (vdb,) = node.snapshots("disk=vdb", "keep")
    node.restic("forget", vdb["id"])
    for command in (("restore", "--suffix", SUFFIX), ("verify",), ("drill",)):
        done = node.run(command[0], pair, *command[1:], DRILL_POOL="ssd")
        assert done.returncode in (1, 3)
        assert "lacks vdb" in done.stderr, done.stderr
        assert _images(lab) == before
    assert node.run("restore", pair, "--suffix", SUFFIX, "--disk", "vda").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_restore_leaves_nothing(
    node: Node, lab: Lab, pair: str, number: signal.Signals
) -> None:
    assert node.run("backup", pair).returncode == 0
    before = _images(lab)
    restic = HeldBackRestic(node, "vdb.img")
    with node.started("restore", pair, "--suffix", SUFFIX, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        assert _images(lab) - before, "an image is made"
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number, output
    assert _images(lab) == before
    assert node.processes("dump") == []


def test_what_a_killed_restore_left_the_next_one_removes(node: Node, lab: Lab, pair: str) -> None:
    assert node.run("backup", pair).returncode == 0
    before = _images(lab)
    restic = HeldBackRestic(node, "vdb.img")
    with node.started("restore", pair, "--suffix", SUFFIX, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        process.kill()
    restic.let_go()
    wait_until(lambda: not node.processes(""), 60, "all of its processes have ended")
    left = _images(lab) - before
    assert left
    assert all("restoring" in image for image in left), "none has its final name"
    wait_until(lambda: not any(_watched(lab, image) for image in left), 60, "its clients are forgotten")
    done = node.run("restore", pair, "--suffix", SUFFIX)
    assert done.returncode == 0, done.stderr
    assert "left by an interrupted restore" in done.stderr
    assert _digest(lab, f"ssd/pair01-b{SUFFIX}") == _digest(lab, "ssd/pair01-b")


def test_a_damaged_repository_restores_nothing(node: Node, lab: Lab, pair: str) -> None:
    assert node.run("backup", pair).returncode == 0
    before = _images(lab)
    largest = max(node.repository.glob("data/*/*"), key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    largest.chmod(0o600)
    largest.write_bytes(whole[:1000] + bytes(len(whole) - 2000) + whole[-1000:])
    done = node.run("restore", pair, "--suffix", SUFFIX)
    largest.write_bytes(whole)
    assert done.returncode == 1
    assert "restic dump failed" in done.stderr, done.stderr
    assert _images(lab) == before


def test_a_domain_is_restored_while_it_is_backed_up(node: Node, lab: Lab, pair: str) -> None:
    assert node.run("backup", pair).returncode == 0
    with node.started("backup", pair, MAX_READ_RATE=20 * MIB) as backup:
        wait_until(lambda: node.processes("--stdin-filename=vdb.img"), 60, "the backup streams")
        with stopped(*node.processes("--stdin-filename=vdb.img")):  # or it might be faster than the restore
            done = node.run("restore", pair, "--suffix", SUFFIX)
            assert backup.poll() is None, "the backup is still at work"
        output, _ = backup.communicate(timeout=300)
    assert (done.returncode, backup.returncode) == (0, 0), done.stderr + output
    assert _digest(lab, f"ssd/pair01-b{SUFFIX}") == _digest(lab, "ssd/pair01-b")


def _images(lab: Lab) -> set[str]:
    return {f"{pool}/{name}" for pool in ("vms", "ssd") for name in lab.rbd("ls", pool).decode().splitlines()}


def _digest(lab: Lab, spec: str) -> str:
    return hashlib.sha256(lab.rbd("export", "--no-progress", spec, "-")).hexdigest()


def _info(lab: Lab, spec: str) -> dict[str, object]:
    told: dict[str, object] = json.loads(lab.rbd("info", "--format", "json", spec))
    return told


def _allocated(lab: Lab, spec: str) -> int:
    extents = json.loads(lab.rbd("diff", "--format", "json", spec))
    return sum(extent["length"] for extent in extents)


def _watched(lab: Lab, spec: str) -> bool:
    return bool(json.loads(lab.rbd("status", "--format", "json", spec))["watchers"])
