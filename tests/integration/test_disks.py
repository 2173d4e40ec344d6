"""Every kind of disk that a domain can have: saved bit for bit, or left out with its reason."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest

from tests.integration.disk_xml import DEAD, V1, V2, backing_store, other_disk, rbd_disk
from tests.integration.node import Node, metadata
from tests.lab import Lab
from tests.lab.cluster import Cluster
from tests.lab.sample import MEDIA, MIB, make_image

DOMAIN = "every disk"
ODD_NAME = "däta disk.1+2 & <b> \"c\" 'd'"
POOL = """
<pool type='rbd'>
  <name>ceph volumes</name>
  <source>
    <host name='127.0.0.1' port='6789'/>
    <name>vms</name>
    <auth type='ceph' username='libvirt'><secret uuid='{secret}'/></auth>
  </source>
</pool>
"""


# What is behind each disk that is saved. vdk's is vda's.
IMAGES = {
    "vda": "vms/tenant/root",
    "vdb": f"vms/{ODD_NAME}",
    "vdc": "vms/odd-c",
    "vdd": "vms/odd-d",
    "vde": "vms/odd-e",
    "vdf": "vms/odd-f",
    "vdg": "vms/tenant/odd-g",
    "vdh": "vms/odd-h",
    "vdi": "vms/odd-i",
    "vdj": "vms/odd-j",
    "vdl": "vms/odd-l",
    "vdl.backing1": "vms/odd-l-base",
    "sdb": "vms/config.iso",
}
NOT_COVERED = {
    "vdk": "the same image as vda",
    "vdm": "runs from snapshot golden, which never changes",
    "vdn": "no RBD image (file)",
    "vdo": "no RBD image (block)",
    "vdp": "no RBD image (nvme)",
    "vdq": "no RBD image (vhostuser)",
    "vdr": "no RBD image (nbd)",
    "sda": "a cdrom without a medium",
    "sdc": "a cdrom",
}


def _devices(secret: UUID) -> str:
    encryption = (
        f"<encryption format='luks2' engine='librbd'><secret type='passphrase' uuid='{secret}'/></encryption>"
    )
    return "".join(
        (
            rbd_disk("vda", IMAGES["vda"], secret=f"uuid='{secret}'"),
            rbd_disk("vdb", IMAGES["vdb"]),
            rbd_disk("vdc", IMAGES["vdc"], hosts=(), secret=""),
            rbd_disk("vdd", IMAGES["vdd"], hosts=(V2,)),
            rbd_disk("vde", IMAGES["vde"], hosts=(DEAD, V1, V2)),
            other_disk("vdf", "volume", "<source pool='ceph volumes' volume='odd-f'/>"),
            other_disk("vdg", "block", "<source dev='/dev/rbd/vms/tenant/odd-g'/>"),
            rbd_disk("vdh", IMAGES["vdh"]).replace("</source>", f"{encryption}</source>"),
            rbd_disk("vdi", IMAGES["vdi"], "<readonly/>"),
            rbd_disk("vdj", IMAGES["vdj"], "<shareable/>"),
            rbd_disk("vdk", IMAGES["vda"]),
            rbd_disk("vdl", IMAGES["vdl"], backing_store(IMAGES["vdl.backing1"])),
            rbd_disk("vdm", "vms/golden").replace("</source>", "<snapshot name='golden'/></source>"),
            other_disk("vdn", "file", "<source file='/srv/disk.img'/>"),
            other_disk("vdo", "block", "<source dev='/dev/vg/disk'/>"),
            other_disk("vdp", "nvme", NVME),
            other_disk("vdr", "network", "<source protocol='nbd' name='x'><host name='127.0.0.1'/></source>"),
            "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>",
            CDROMS,
        )
    )


NVME = """<source type='pci' managed='yes' namespace='1'>
        <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
      </source>"""
CDROMS = """
    <disk type='network' device='cdrom'>
      <source protocol='rbd' name='vms/config.iso'/>
      <target dev='sdb' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='file' device='cdrom'>
      <source file='/srv/install.iso'/>
      <target dev='sdc' bus='sata'/>
      <readonly/>
    </disk>"""


@pytest.fixture(scope="module")
def every_disk(lab: Lab) -> Iterator[str]:
    """A domain that is shut off and has one of each kind."""
    with ExitStack() as stack:
        lab.rbd("namespace", "create", "vms/tenant")
        stack.callback(lab.rbd, "namespace", "remove", "vms/tenant")
        for image in IMAGES.values():
            make_image(lab, image, 5 * MIB + 511, {0: 4096, 3 * MIB: 2 * MIB + 511})
            stack.callback(lab.delete_image, image)
        lab.virsh("pool-define", "/dev/stdin", stdin=POOL.format(secret=lab.secret_uuid).encode())
        stack.callback(lab.virsh, "pool-undefine", "ceph volumes")
        lab.define_domain(DOMAIN, [], extra_xml=_devices(lab.secret_uuid))
        stack.callback(lab.undefine_domain, DOMAIN)
        _add_vhost_disk(lab)
        yield DOMAIN


def _add_vhost_disk(lab: Lab) -> None:
    """It needs memory that is shared."""
    disk = other_disk("vdq", "vhostuser", "<source type='unix' path='/run/vhost.sock'/>")
    xml = lab.virsh("dumpxml", DOMAIN).replace("</devices>", f"{disk}</devices>")
    xml = xml.replace("<os>", "<memoryBacking><access mode='shared'/></memoryBacking><os>")
    lab.virsh("define", "/dev/stdin", stdin=xml.encode())


def test_every_disk_is_saved_bit_for_bit_or_left_out_with_its_reason(
    node: Node, lab: Lab, every_disk: str
) -> None:
    done = node.run("backup", every_disk)
    assert done.returncode == 0, done.stderr
    saved = {image["target"]: image for image in node.report()["domains"][every_disk]["images"]}
    assert {target: image["image"] for target, image in saved.items()} == IMAGES
    for target, image in saved.items():
        original = lab.rbd("export", "--no-progress", image["image"], "-")
        assert node.dump(image["restore_id"], f"{target}.img") == original, target
    manifest = json.loads(node.definition(every_disk)["manifest.json"])
    assert {one["target"]: one["reason"] for one in manifest["not_covered"]} == NOT_COVERED
    (encrypted,) = node.snapshots("encryption=luks2")
    assert encrypted["id"].startswith(saved["vdh"]["restore_id"])


def test_list_and_check_name_every_disk(node: Node, every_disk: str) -> None:
    domains = json.loads(node.run("list", "--json").stdout)
    (domain,) = [one for one in domains if one["name"] == every_disk]
    disks = {disk["target"]: disk for disk in domain["disks"]}
    assert {target: disks[target]["image"] for target in IMAGES} == IMAGES
    reasons = {target: disk["reason"] for target, disk in disks.items() if disk["reason"]}
    assert reasons == {target: reason for target, reason in NOT_COVERED.items() if target != "vdk"}
    checked = node.run("check")
    assert checked.returncode == 0, checked.stdout


def test_uncovered_disks_can_fail_their_domain_and_its_metadata_can_leave_them_out(
    node: Node, lab: Lab
) -> None:
    done = node.run("backup", MEDIA, UNCOVERED_DISKS="fail")
    assert done.returncode == 3
    assert "disk vdb" in node.report()["domains"][MEDIA]["reason"]
    lab.virsh(*metadata(MEDIA, '<backup exclude="vdb"/>'))
    try:
        done = node.run("backup", MEDIA, UNCOVERED_DISKS="fail")
    finally:
        lab.virsh(*metadata(MEDIA))
    assert done.returncode == 0, done.stderr


def test_a_base_that_only_a_header_names_fails_the_domain_by_name(
    node: Node, lab: Lab, tmp_path: Path
) -> None:
    for name, options in (("whole", ()), ("overlay", ("-b", "rbd:vms/base", "-F", "raw", "-u"))):
        new = tmp_path / name
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(new), "8M"], check=True)
        lab.rbd("import", "--no-progress", str(new), f"vms/{name}")
    disks = (rbd_disk("vda", "vms/whole"), rbd_disk("vdb", "vms/overlay"))
    lab.define_domain("qcow2", [], extra_xml="".join(disks).replace("type='raw'", "type='qcow2'"))
    try:
        done = node.run("backup", "qcow2")
        reason = node.report()["domains"]["qcow2"]["reason"]
        lab.virsh(*metadata("qcow2", '<backup exclude="vdb"/>'))
        without = node.run("backup", "qcow2")
    finally:
        lab.undefine_domain("qcow2")
        for name in ("whole", "overlay"):
            lab.delete_image(f"vms/{name}")
    assert (done.returncode, without.returncode) == (3, 0), done.stderr + without.stderr
    assert reason.startswith(
        "disk vdb (vms/overlay) cannot be backed up: its qcow2 header names a backing file"
    )


@pytest.fixture(scope="module")
def other_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A second cluster, without cephx and on IPv6."""
    cluster = Cluster(tmp_path_factory.mktemp("other") / "ceph", "::1", 3301, 6790, "none")
    cluster.refuse_taken_ports()
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def test_a_domain_on_another_cluster_is_saved_from_there(
    node: Node, lab: Lab, other_cluster: Cluster
) -> None:
    """Under a name that exists in the cluster of CEPH_CONF as well."""
    make_image(lab, "vms/of-two-clusters", MIB, {0: 4096})
    contents = {}
    for name in ("of-two-clusters", "by-config"):
        contents[f"vms/{name}"] = random.Random(name).randbytes(3 * MIB + 1)
        other_cluster.rbd("import", "--no-progress", "-", f"vms/{name}", stdin=contents[f"vms/{name}"])
    config = f"<config file='{other_cluster.conf}'/></source>"
    lab.define_domain(
        "of two clusters",
        [],
        extra_xml=rbd_disk("vda", "vms/of-two-clusters", hosts=(("::1", "6790"),), secret="")
        + rbd_disk("vdb", "vms/by-config", hosts=(), secret="").replace("</source>", config)
        + rbd_disk("vdc", "vms/of-two-clusters"),
    )
    try:
        done = node.run("backup", "of two clusters")
        assert done.returncode == 0, done.stderr
        saved = {image["target"]: image for image in node.report()["domains"]["of two clusters"]["images"]}
        here = lab.rbd("export", "--no-progress", "vms/of-two-clusters", "-")
        expected = {
            "vda": contents["vms/of-two-clusters"],
            "vdb": contents["vms/by-config"],
            "vdc": here,
        }
        assert set(saved) == set(expected)
        for target, content in expected.items():
            assert node.dump(saved[target]["restore_id"], f"{target}.img") == content, target
        for image in contents:
            assert json.loads(other_cluster.rbd("snap", "ls", "--format", "json", image)) == []
    finally:
        lab.undefine_domain("of two clusters")
        lab.delete_image("vms/of-two-clusters")
