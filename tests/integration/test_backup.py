"""A whole run over the sample domains, and what can be had back from it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.integration.node import SLOW, Node, snapshot_names
from tests.lab import Lab, RbdDisk
from tests.lab.sample import ARCHIVE, ARCHIVE_SIZE, DATABASE, MEDIA, MIB, WEB, make_image, remove_domain
from tests.quick_repository import PASSWORD


def test_all_domains_are_saved_each_as_consistently_as_it_can_be(node: Node, lab: Lab) -> None:
    done = node.run()
    assert done.returncode == 0, done.stderr
    report = node.report()
    assert report["exit_code"] == 0
    consistency = {name: domain["consistency"] for name, domain in report["domains"].items()}
    assert consistency == {WEB: "filesystem", DATABASE: "paused", ARCHIVE: "offline", MEDIA: "offline"}
    assert {domain["status"] for domain in report["domains"].values()} == {"saved"}
    for name in (WEB, DATABASE):
        assert 0 < report["domains"][name]["frozen_seconds"] < 30
    assert report["domains"][ARCHIVE]["frozen_seconds"] == 0
    assert "\x1b" not in done.stdout + done.stderr
    page = node.run("report", "--html", "-").stdout
    assert "4 domains saved" in page
    assert page.count('<td class="day ') == 4, "today, of each domain"
    _assert_no_secret(lab, done.stdout + done.stderr + page + node.report_file.read_text())


def test_the_repository_has_domain_image_run_and_consistency_of_each_snapshot(node: Node, lab: Lab) -> None:
    node.run("backup", WEB)
    report = node.report()
    domain = report["domains"][WEB]
    common = {"virt-rbd-backup", f"run={report['run']}", f"uuid={domain['uuid']}", "consistency=filesystem"}
    (fsid,) = re.findall(r"fsid\s*=\s*(\S+)", lab.ceph_conf.read_text())
    common |= {f"lock={fsid}/vms/", f"lock={fsid}/ssd/"}
    by_file = {Path(one["paths"][0]).name: one for one in node.snapshots()}
    assert set(by_file) == {"vda.img", "vdb.img", "definition.tar"}
    assert {one["hostname"] for one in by_file.values()} == {WEB}
    assert len({one["time"] for one in by_file.values()}) == 1
    of_disks = {"vda": {f"image=vms/{WEB}-root", f"size={256 * MIB}"}}
    of_disks["vdb"] = {f"image=ssd/{WEB}-data", f"size={128 * MIB}"}
    for target, own in of_disks.items():
        assert set(by_file[f"{target}.img"]["tags"]) == common | {f"disk={target}"} | own
    assert set(by_file["definition.tar"]["tags"]) == common | {"definition", f"node={socket.gethostname()}"}
    assert by_file["vda.img"]["id"].startswith(domain["images"][0]["restore_id"])
    assert domain["images"][0]["size"] == 256 * MIB


def test_a_frozen_guest_is_restored_with_clean_file_systems_of_one_moment(
    node: Node, lab: Lab, tmp_path: Path
) -> None:
    before = lab.wait_for_ticks(WEB, beyond=lab.ticks(WEB))
    assert node.run("backup", WEB).returncode == 0
    ticks = {}
    for saved in node.report()["domains"][WEB]["images"]:
        path = tmp_path / saved["target"]
        path.write_bytes(node.dump(saved["restore_id"], f"{saved['target']}.img"))
        assert "needs_recovery" not in _run("dumpe2fs", "-h", str(path))
        _run("e2fsck", "-f", "-n", str(path))
        ticks[saved["target"]] = int(_run("debugfs", "-R", "cat tick", str(path)))
    assert ticks["vda"] - ticks["vdb"] in (0, 1), "both disks are of the same moment"
    assert ticks["vdb"] >= before
    lab.wait_for_ticks(WEB, beyond=ticks["vda"])


def test_a_paused_guest_has_both_disks_of_one_moment_too(node: Node, lab: Lab, tmp_path: Path) -> None:
    assert node.run("backup", WEB, FREEZE="never").returncode == 0
    domain = node.report()["domains"][WEB]
    assert domain["consistency"] == "paused"
    ticks = {}
    for saved in domain["images"]:
        path = tmp_path / saved["target"]
        path.write_bytes(node.dump(saved["restore_id"], f"{saved['target']}.img"))
        subprocess.run(["e2fsck", "-p", str(path)], check=False)  # replays the journal, as a boot would
        ticks[saved["target"]] = int(_run("debugfs", "-R", "cat tick", str(path)))
    assert ticks["vda"] - ticks["vdb"] in (0, 1)


SHAPES = {
    "vda": (4 * MIB, {0: 4 * MIB}),
    "vdb": (0, {}),
    "vdc": (9 * MIB + 513, {9 * MIB + 512: 1}),
    "vdd": (33 * MIB + 7, {}),
    "vde": (40 * MIB, {4 * MIB - 3: 6, 12 * MIB: 65536, 14 * MIB + 1: 8192, 31 * MIB + 5: 5 * MIB}),
    "vdf": (1, {0: 1}),
    "vdg": (11 * MIB, {65536 * number: 4096 for number in range(0, 160, 3)}),
}
# Objects smaller than a read: several extents in one.
OPTIONS = {"vdg": ("--object-size", "64K")}


@pytest.fixture
def shapes(lab: Lab) -> Iterator[str]:
    """A domain that is shut off, with images of sizes and holes that trip up readers."""
    specs = {target: f"vms/shape-{target}" for target in SHAPES}
    try:
        for target, (size, data) in SHAPES.items():
            make_image(lab, specs[target], size, data, *OPTIONS.get(target, ()))
        lab.define_domain("shapes", [RbdDisk(target, spec) for target, spec in specs.items()])
        yield "shapes"
    finally:
        remove_domain(lab, "shapes", *specs.values())


@pytest.mark.parametrize("replica_reads", ["", "balance", "localize"])
def test_every_image_is_restored_bit_for_bit(node: Node, lab: Lab, shapes: str, replica_reads: str) -> None:
    done = node.run("backup", shapes, REPLICA_READS=replica_reads)
    assert done.returncode == 0, done.stderr
    for saved in node.report()["domains"][shapes]["images"]:
        size, data = SHAPES[saved["target"]]
        assert saved["size"] == size
        assert sum(data.values()) <= saved["data_bytes"] <= size
        original = lab.rbd("export", "--no-progress", saved["image"], "-")
        if size:
            assert node.dump(saved["restore_id"], f"{saved['target']}.img") == original
        else:
            assert (saved["restore_id"], original) == ("", b"")


def test_the_largest_domain_comes_first(node: Node) -> None:
    assert node.run("backup", ARCHIVE, MEDIA, DATABASE, WORKERS=1).returncode == 0
    assert list(node.report()["domains"]) == [DATABASE, ARCHIVE, MEDIA]


@pytest.fixture
def four_disks(lab: Lab) -> Iterator[str]:
    """A domain that is shut off, with four equal images."""
    images = [f"vms/equal-{number}" for number in range(4)]
    try:
        for image in images:
            make_image(lab, image, 96 * MIB, {0: 96 * MIB})
        lab.define_domain("equal", [RbdDisk(f"vd{'abcd'[number]}", one) for number, one in enumerate(images)])
        yield "equal"
    finally:
        remove_domain(lab, "equal", *images)


@pytest.mark.parametrize(("streams", "rate", "least", "most"), [(4, 8 * MIB, 1.1, 4.0), (1, SLOW, 0.0, 1.1)])
def test_the_disks_of_a_domain_are_streamed_at_the_same_time_within_streams(
    node: Node, four_disks: str, streams: int, rate: int, least: float, most: float
) -> None:
    done = node.run("backup", four_disks, MAX_READ_RATE=rate, STREAMS=streams)
    assert done.returncode == 0, done.stderr
    domain = node.report()["domains"][four_disks]
    images = domain["images"]
    assert [image["target"] for image in images] == ["vda", "vdb", "vdc", "vdd"]
    together = sum(image["seconds"] for image in images) / domain["seconds"]
    assert least < together < most, "how many are streamed at a time on average"


def test_holes_are_not_read(node: Node) -> None:
    assert node.run("backup", ARCHIVE).returncode == 0
    (saved,) = node.report()["domains"][ARCHIVE]["images"]
    assert saved["size"] == ARCHIVE_SIZE
    assert 3 * MIB <= saved["data_bytes"] < 8 * MIB


def test_the_definition_comes_back_with_the_manifest(node: Node, lab: Lab) -> None:
    assert node.run("backup", WEB, MEDIA).returncode == 0
    files = node.definition(WEB)
    manifest = json.loads(files["manifest.json"])
    assert [image["target"] for image in manifest["images"]] == ["vda", "vdb"]
    assert (manifest["consistency"], manifest["not_covered"]) == ("filesystem", [])
    inactive = ElementTree.fromstring(files["domain.xml"])
    assert inactive.findtext("name") == WEB
    assert inactive.get("id") is None
    assert ElementTree.fromstring(files["domain-live.xml"]).get("id") is not None
    lab.virsh("define", "/dev/stdin", stdin=files["domain.xml"])

    files = node.definition(MEDIA)
    assert "domain-live.xml" not in files
    assert [disk["target"] for disk in json.loads(files["manifest.json"])["not_covered"]] == ["vdb", "sda"]


@pytest.fixture
def uefi(lab: Lab, tmp_path: Path) -> Iterator[tuple[str, bytes]]:
    """A domain that is shut off, with an NVRAM file, and the file's content."""
    nvram = tmp_path / "nvram.fd"
    nvram.write_bytes(b"variables of the firmware" * 5000)
    firmware = f"<loader readonly='yes' type='pflash'>/firmware.fd</loader><nvram>{nvram}</nvram></os>"
    try:
        make_image(lab, "vms/uefi", MIB, {})
        lab.define_domain("uefi", [RbdDisk("vda", "vms/uefi")])
        xml = lab.virsh("dumpxml", "uefi").replace("</os>", firmware)
        lab.virsh("define", "/dev/stdin", stdin=xml.encode())
        yield "uefi", nvram.read_bytes()
    finally:
        remove_domain(lab, "uefi", "vms/uefi")


def test_the_nvram_file_is_saved(node: Node, uefi: tuple[str, bytes]) -> None:
    name, content = uefi
    assert node.run("backup", name).returncode == 0
    assert node.definition(name)["nvram.fd"] == content


def test_a_domain_that_an_admin_has_paused_stays_paused(node: Node, lab: Lab) -> None:
    lab.virsh("suspend", DATABASE)
    try:
        assert node.run("backup", DATABASE).returncode == 0
        assert lab.virsh("domstate", DATABASE).strip() == "paused"
        assert node.report()["domains"][DATABASE]["consistency"] == "paused"
    finally:
        lab.virsh("resume", DATABASE)


def test_without_freeze_a_domain_can_be_taken_as_it_runs(node: Node) -> None:
    assert node.run("backup", DATABASE, WITHOUT_FREEZE="crash").returncode == 0
    domain = node.report()["domains"][DATABASE]
    assert (domain["consistency"], domain["frozen_seconds"]) == ("crash", 0)


def test_foreign_snapshots_stay(node: Node, lab: Lab) -> None:
    lab.rbd("snap", "create", "--no-progress", f"vms/{ARCHIVE}@before-upgrade")
    try:
        assert node.run("backup", ARCHIVE).returncode == 0
        assert snapshot_names(lab, f"vms/{ARCHIVE}", prefix="") == ["before-upgrade"]
    finally:
        lab.rbd("snap", "rm", "--no-progress", f"vms/{ARCHIVE}@before-upgrade")


def test_the_second_backup_adds_next_to_nothing(node: Node) -> None:
    node.run("backup", ARCHIVE)
    node.run("backup", ARCHIVE)
    (saved,) = node.report()["domains"][ARCHIVE]["images"]
    assert saved["stored_bytes"] < 100_000


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _assert_no_secret(lab: Lab, text: str) -> None:
    key = re.search(r"key = (\S+)", (lab.ceph_conf.parent / "ceph.client.libvirt.keyring").read_text())
    assert key
    assert key[1] not in text
    assert PASSWORD not in text
