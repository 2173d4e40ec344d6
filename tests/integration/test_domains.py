"""Every state that a domain can be in, and what changes while a run is under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import rados
import rbd

from tests.faults.provoke import HeldBackRestic
from tests.integration.node import Node, wait_until
from tests.lab import Lab, RbdDisk
from tests.lab.sample import ARCHIVE, DATABASE, MIB, WEB, make_image

# libvirt allows anything in a name but slashes and control characters.
ODD_NAMES = ("--delete", "a,run=b", "grün, 'blau' & \"rot\"", "$(reboot) *?[a] 100%")
ODD_IMAGE = "vms/--force,run=x 100%"
BACKUP_JOB = """
<domainbackup mode='pull'>
  <server transport='unix' socket='{directory}/socket'/>
  <disks>
    <disk name='vda' type='file' backup='yes'><scratch file='{directory}/scratch.qcow2'/></disk>
  </disks>
</domainbackup>
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is put on it is undone after the test, in reverse."""
    with ExitStack() as stack:
        yield stack


def test_names_of_any_kind_are_restored_unchanged(node: Node, lab: Lab, stack: ExitStack) -> None:
    make_image(lab, ODD_IMAGE, MIB, {0: 4096})
    stack.callback(lab.delete_image, ODD_IMAGE)
    for name in ODD_NAMES:
        lab.define_domain(name, [RbdDisk("vda", ODD_IMAGE)])
        stack.callback(lab.virsh, "undefine", "--domain", name)
    done = node.run("backup", "--", *ODD_NAMES)
    assert done.returncode == 0, done.stderr
    assert {domain["status"] for domain in node.report()["domains"].values()} == {"saved"}
    assert {one["hostname"] for one in node.snapshots()} == set(ODD_NAMES)
    runs = {tag for one in node.snapshots() for tag in one["tags"] if tag.startswith("run=")}
    assert runs == {f"run={node.report()['run']}"}, "no name has added a tag"
    images = [one for one in node.snapshots() if "disk=vda" in one["tags"]]
    assert len(images) == len(ODD_NAMES)
    assert all("image=vms/--force%2Crun=x 100%25" in one["tags"] for one in images)


def test_a_domain_suspended_to_memory_is_saved_as_it_stands(node: Node, lab: Lab, stack: ExitStack) -> None:
    lab.virsh("dompmsuspend", WEB, "mem")
    stack.callback(lab.virsh, "dompmwakeup", WEB)
    wait_until(lambda: lab.virsh("domstate", WEB).strip() == "pmsuspended", 120, "the guest sleeps")
    assert node.run("backup", WEB).returncode == 0
    domain = node.report()["domains"][WEB]
    assert (domain["consistency"], domain["frozen_seconds"]) == ("paused", 0)
    assert lab.virsh("domstate", WEB).strip() == "pmsuspended"


def test_a_domain_whose_memory_is_saved_counts_as_paused(node: Node, lab: Lab, stack: ExitStack) -> None:
    lab.virsh("managedsave", DATABASE)
    stack.callback(lab.virsh, "start", DATABASE)
    assert node.run("backup", DATABASE).returncode == 0
    assert node.report()["domains"][DATABASE]["consistency"] == "paused"


def test_a_domain_with_another_job_at_work_on_it_has_to_wait(
    node: Node, lab: Lab, stack: ExitStack, tmp_path: Path
) -> None:
    job = BACKUP_JOB.format(directory=tmp_path)
    lab.virsh("backup-begin", DATABASE, "/dev/stdin", stdin=job.encode())
    stack.callback(lab.virsh, "domjobabort", DATABASE)
    assert node.run("backup", DATABASE, ARCHIVE).returncode == 3
    domains = node.report()["domains"]
    assert (domains[DATABASE]["status"], domains[ARCHIVE]["status"]) == ("failed", "saved")
    assert "another libvirt job" in domains[DATABASE]["reason"]


def test_a_disk_that_others_write_to_as_well_is_only_as_consistent_as_a_crash(node: Node, lab: Lab) -> None:
    with _opened(lab, "ssd", f"{WEB}-data"):
        done = node.run("backup", WEB)
    assert done.returncode == 0
    assert node.report()["domains"][WEB]["consistency"] == "crash"
    assert f"ssd/{WEB}-data is in use by other clients too" in done.stderr


def test_a_domain_that_is_shut_off_but_runs_elsewhere_is_only_as_consistent_as_a_crash(
    node: Node, lab: Lab
) -> None:
    with _opened(lab, "vms", ARCHIVE):
        done = node.run("backup", ARCHIVE)
    assert done.returncode == 0
    assert node.report()["domains"][ARCHIVE]["consistency"] == "crash"


@contextmanager
def _opened(lab: Lab, pool: str, image: str) -> Iterator[None]:
    """Have the image open for writing, as a QEMU on another node has."""
    with (
        rados.Rados(conffile=str(lab.ceph_conf)) as cluster,
        cluster.open_ioctx(pool) as opened,
        rbd.Image(opened, image),
    ):
        yield


@pytest.fixture
def transient(lab: Lab, stack: ExitStack) -> str:
    """A running domain that libvirt forgets when it is shut off."""
    make_image(lab, "vms/transient", 96 * MIB, {0: 32 * MIB})
    stack.callback(lab.delete_image, "vms/transient")
    lab.define_domain("transient", [RbdDisk("vda", "vms/transient")])
    xml = lab.virsh("dumpxml", "transient")
    lab.virsh("undefine", "transient")
    lab.virsh("create", "/dev/stdin", stdin=xml.encode())
    stack.callback(_destroy, lab, "transient")
    return "transient"


def _destroy(lab: Lab, name: str) -> None:
    if name in lab.virsh("list", "--name").split():
        lab.virsh("destroy", name)


def test_what_happens_to_a_domain_after_its_snapshots_does_not_matter(
    node: Node, lab: Lab, transient: str
) -> None:
    restic = HeldBackRestic(node, "vda.img")
    with node.started("backup", transient, RESTIC_BINARY=restic.path, FREEZE="never") as process:
        restic.reached()
        lab.destroy_domain(transient)
        restic.let_go()
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    domain = node.report()["domains"][transient]
    assert (domain["status"], domain["consistency"]) == ("saved", "paused")
    assert "domain-live.xml" in node.definition(transient)


def test_each_domain_is_looked_at_again_when_its_turn_comes(
    node: Node, lab: Lab, stack: ExitStack, transient: str
) -> None:
    """While the largest one is streamed, others are undefined and started."""
    for name in ("undefined", "started"):
        make_image(lab, f"vms/{name}", MIB, {0: 4096})
        stack.callback(lab.delete_image, f"vms/{name}")
        lab.define_domain(name, [RbdDisk("vda", f"vms/{name}")])
    stack.callback(lab.undefine_domain, "started")
    restic = HeldBackRestic(node, "vda.img")
    constants = {"WORKERS": 1, "RESTIC_BINARY": restic.path, "FREEZE": "never"}
    with node.started("backup", transient, "undefined", "started", **constants) as process:
        restic.reached()
        lab.undefine_domain("undefined")
        lab.virsh("start", "started")
        stack.callback(lab.destroy_domain, "started")
        restic.let_go()
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    domains = node.report()["domains"]
    assert domains["undefined"]["status"] == "skipped"
    assert "no longer defined" in domains["undefined"]["reason"]
    assert (domains["started"]["status"], domains["started"]["consistency"]) == ("saved", "paused")
