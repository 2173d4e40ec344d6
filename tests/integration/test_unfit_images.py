"""Images that no backup can be had of: a clear refusal, and no other domain is the worse for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import rados
import rbd

from backup.ceph.cluster import Cluster
from backup.ceph.errors import ClusterError, ImageGone
from backup.model import ClusterAddress, Image
from tests.integration.disk_xml import backing_store, other_disk, rbd_disk
from tests.integration.node import Node, metadata, snapshot_names
from tests.integration.scratch_image import received
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, MIB, make_image

# What is wrong with a domain's only disk, and what the report says of it.
REASONS = {
    "missing": "cannot open image vms/missing: no such file or directory",
    "in the trash": "cannot open image vms/in the trash: no such file or directory",
    "migrating": "image ssd/migrating is being migrated",
    "not primary": "image ssd/not primary is a mirror that is not primary",
    "formatted clone": "image vms/formatted clone is a clone with an encryption of its own",
    "limited": "image vms/limited: disk quota exceeded",
    "overlaid": "disk vda (/srv/overlay.qcow2) cannot be backed up: changes on top of RBD image vms/overla",
    "unknown pool": "disk vda (x) cannot be backed up: cannot look up libvirt's storage pool nowhere",
    "not mapped": "disk vda (/dev/rbd77) cannot be backed up: cannot find out which image is mapped",
    "no name": "disk vda (vms/a/b/c) cannot be backed up: invalid image name 'vms/a/b/c', expected",
}
HINTS = {
    "formatted clone": "rbd flatten",
    "in the trash": "rbd trash ls --all vms",
    "limited": "rbd snap limit",
    "overlaid": "metadata",
}


@pytest.fixture(scope="module")
def unfit(lab: Lab) -> Iterator[None]:
    disks = {
        **{
            name: rbd_disk("vda", f"vms/{name}")
            for name in ("missing", "in the trash", "limited", "formatted clone")
        },
        **{name: rbd_disk("vda", f"ssd/{name}") for name in ("migrating", "not primary")},
        "overlaid": other_disk(
            "vda", "file", "<source file='/srv/overlay.qcow2'/>", backing_store("vms/overlaid")
        ),
        "unknown pool": other_disk("vda", "volume", "<source pool='nowhere' volume='x'/>"),
        "not mapped": other_disk("vda", "block", "<source dev='/dev/rbd77'/>"),
        "no name": rbd_disk("vda", "vms/a/b/c"),
    }
    assert set(disks) == set(REASONS)
    with ExitStack() as stack:
        _prepare(lab, stack)
        for name, xml in disks.items():
            lab.define_domain(name, [], extra_xml=xml)
            stack.callback(lab.undefine_domain, name)
        yield


def _prepare(lab: Lab, stack: ExitStack) -> None:
    """Make the images, each in the state that its name tells."""
    for image in ("vms/limited", "ssd/not primary", "vms/migrating", "vms/in the trash"):
        make_image(lab, image, MIB, {0: 4096})
    _make_formatted_clone(lab, stack)
    lab.rbd("trash", "move", "vms/in the trash")
    stack.callback(lab.rbd, "trash", "purge", "--no-progress", "vms")
    lab.rbd("migration", "prepare", "vms/migrating", "ssd/migrating")
    stack.callback(lab.delete_image, "vms/migrating")
    stack.callback(lab.rbd, "migration", "abort", "--no-progress", "ssd/migrating")
    lab.rbd("mirror", "pool", "enable", "ssd", "image")
    stack.callback(lab.rbd, "mirror", "pool", "disable", "ssd")
    stack.callback(lab.delete_image, "ssd/not primary")
    lab.rbd("mirror", "image", "enable", "ssd/not primary", "snapshot")
    stack.callback(lab.rbd, "mirror", "image", "disable", "--force", "ssd/not primary")
    lab.rbd("mirror", "image", "demote", "ssd/not primary")
    stack.callback(lab.delete_image, "vms/limited")
    lab.rbd("snap", "create", "--no-progress", "vms/limited@mine")
    stack.callback(lab.rbd, "snap", "purge", "--no-progress", "vms/limited")
    lab.rbd("snap", "limit", "set", "--limit", "1", "vms/limited")


def _make_formatted_clone(lab: Lab, stack: ExitStack) -> None:
    """Make a clone with an encryption of its own, or with its magic where Ceph is older than 17.2.6.

    (librbd, crypto/luks/Magic.cc)
    """
    make_image(lab, "vms/template", 32 * MIB, {0: 4096})  # with room for the header
    stack.callback(lab.delete_image, "vms/template")
    lab.rbd("snap", "create", "--no-progress", "vms/template@base")
    stack.callback(lab.rbd, "snap", "purge", "--no-progress", "vms/template")
    lab.rbd("snap", "protect", "vms/template@base")
    stack.callback(lab.rbd, "snap", "unprotect", "vms/template@base")
    lab.rbd("clone", "vms/template@base", "vms/formatted clone")
    stack.callback(lab.delete_image, "vms/formatted clone")
    with (
        rados.Rados(conffile=str(lab.ceph_conf)) as cluster,
        cluster.open_ioctx("vms") as pool,
        rbd.Image(pool, "formatted clone") as clone,
    ):
        if lab.ceph("version").split()[2] > "18":
            clone.encryption_format(rbd.RBD_ENCRYPTION_FORMAT_LUKS2, "passphrase")
        else:
            clone.write(b"RBDL\xba\xbe\x00\x02", 0)


def test_each_is_refused_with_its_reason_and_no_other_domain_suffers(
    node: Node, lab: Lab, unfit: None
) -> None:
    done = node.run("backup", *REASONS, ARCHIVE)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    domains = node.report()["domains"]
    assert {name: domain["status"] for name, domain in domains.items()} == {
        **dict.fromkeys(REASONS, "failed"),
        ARCHIVE: "saved",
    }
    for name, reason in REASONS.items():
        assert reason in domains[name]["reason"]
    for name, hint in HINTS.items():
        (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"error: {name}: ")]
        assert hint in line.partition("hint: ")[2]
    assert {one["hostname"] for one in node.snapshots()} == {ARCHIVE}
    assert snapshot_names(lab, "vms/limited", prefix="") == ["mine"]


def test_check_finds_them_before_the_backup(node: Node, unfit: None) -> None:
    checked = node.run("check").stdout
    problems = [line for line in checked.splitlines() if line.startswith("PROBLEM")]
    found = {name for name, reason in REASONS.items() if any(reason in line for line in problems)}
    assert found == set(REASONS) - {"limited"}  # a snapshot limit shows when a snapshot is made


def test_an_admin_can_leave_the_disk_out(node: Node, lab: Lab, unfit: None) -> None:
    lab.virsh(*metadata("overlaid", '<backup exclude="vda"/>'))
    done = node.run("backup", "overlaid")
    assert done.returncode == 0
    assert "no RBD image to back up" in done.stderr


@pytest.fixture
def image(lab: Lab) -> Iterator[Image]:
    make_image(lab, "vms/between", 9 * MIB, {0: 4096, 8 * MIB: 4096})
    yield Image("vms", "between")
    for name in ("between", "renamed"):
        if name in lab.rbd("ls", "vms").decode().splitlines():
            lab.delete_image(f"vms/{name}")


@pytest.fixture
def cluster(lab: Lab) -> Iterator[Cluster]:
    with Cluster(ClusterAddress(), "", str(lab.ceph_conf), timeout=120) as cluster:
        yield cluster


def test_an_image_that_is_renamed_meanwhile_is_saved_all_the_same(
    lab: Lab, cluster: Cluster, image: Image
) -> None:
    content = lab.rbd("export", "--no-progress", str(image), "-")
    known = cluster.identified(image)
    lab.rbd("rename", "vms/between", "vms/renamed")
    cluster.create_snapshot(known, "ours")
    lab.rbd("rename", "vms/renamed", "vms/between")
    with cluster.reader(known, "ours") as reader:
        lab.rbd("rename", "vms/between", "vms/renamed")
        assert received(reader) == content
    assert snapshot_names(lab, "vms/renamed", prefix="") == ["ours"]
    cluster.remove_snapshot(known, "ours")
    assert snapshot_names(lab, "vms/renamed", prefix="") == []


@pytest.mark.parametrize("size", ["1M", "64M"])
def test_a_snapshot_has_the_size_of_its_moment(lab: Lab, cluster: Cluster, image: Image, size: str) -> None:
    known = cluster.identified(image)
    content = lab.rbd("export", "--no-progress", str(image), "-")
    cluster.create_snapshot(known, "ours")
    lab.rbd("resize", "--no-progress", "--allow-shrink", "--size", size, str(image))
    with cluster.reader(known, "ours") as reader:
        assert received(reader) == content
    cluster.remove_snapshot(known, "ours")


def test_another_image_of_the_same_name_is_not_taken_for_it(lab: Lab, cluster: Cluster, image: Image) -> None:
    known = cluster.identified(image)
    lab.delete_image(str(image))
    make_image(lab, str(image), MIB, {})
    with pytest.raises(ImageGone):
        cluster.create_snapshot(known, "ours")
    assert snapshot_names(lab, str(image), prefix="") == []


def test_a_device_of_another_cluster_is_not_looked_for_in_this_one(lab: Lab, cluster: Cluster) -> None:
    other = "00000000-0000-4000-8000-000000000001"
    with pytest.raises(ClusterError, match=f"{other}.* belongs to cluster {cluster.fsid}"):
        Cluster(ClusterAddress(fsid=other), "", str(lab.ceph_conf), timeout=120)
    with Cluster(ClusterAddress(fsid=cluster.fsid), "", str(lab.ceph_conf), timeout=120) as same:
        assert same.fsid == cluster.fsid
