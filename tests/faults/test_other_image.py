"""Images that are not those to which the running guest writes, or to which another client writes too."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.provoke import agent_hook, held
from tests.integration.disk_xml import rbd_disk
from tests.integration.node import Node, wait_until
from tests.lab import Lab
from tests.lab.sample import MIB

WRITER = """
import rados, rbd, sys, time
cluster = rados.Rados(conffile=sys.argv[1])
cluster.connect()
image = rbd.Image(cluster.open_ioctx("vms"), sys.argv[2])
print(flush=True)
time.sleep(600)
"""


def test_an_image_that_took_the_name_of_the_running_guest_s_is_no_backup_of_it(
    node: Node, lab: Lab, plain: str
) -> None:
    lab.rbd("rename", "vms/plain", "vms/plain.old")
    lab.create_image("vms/plain", 64 * MIB)
    try:
        done = node.run("backup", plain)
    finally:
        lab.delete_image("vms/plain")
        lab.rbd("rename", "vms/plain.old", "vms/plain")
    assert done.returncode == 3, done.stderr
    reason = node.report()["domains"][plain]["reason"]
    assert reason == "vms/plain is open in no client, although the domain is running"
    assert "retrying 1 failed domains" in done.stderr
    assert node.snapshots() == []
    assert node.run("backup", plain).returncode == 0


def test_another_client_s_writes_to_a_disk_that_the_guest_only_reads_or_gets_later_count(
    node: Node, lab: Lab, plain: str
) -> None:
    """QEMU itself has an image open as a writer even where its guest may only read it."""
    for target, inside in (("vdr", "<readonly/>"), ("vds", "")):
        lab.create_image(f"vms/{target}", MIB)
        flags = ("--config", "--live") if inside else ("--config",)
        disk = rbd_disk(target, f"vms/{target}", inside).encode()
        lab.virsh("attach-device", plain, "/dev/stdin", *flags, stdin=disk)
    try:
        images = ("vms/plain", "vms/vdr", "vms/vds")
        watchers = [1, 1, 0]  # and for a while those of workers that were killed before
        wait_until(lambda: [_watchers(lab, one) for one in images] == watchers, 30, "they are in use")
        assert _consistency(node, plain) == "filesystem"
        for spec in ("vdr", "vds"):
            with _written(lab, spec):
                assert _consistency(node, plain) == "crash", spec
    finally:
        for target, flags in (("vdr", ("--config", "--live")), ("vds", ("--config",))):
            lab.virsh("detach-disk", plain, target, *flags)
            lab.delete_image(f"vms/{target}")


def test_a_disk_that_is_attached_during_a_slow_freeze_is_saved_with_the_others(
    node: Node, lab: Lab, plain: str
) -> None:
    lab.create_image("vms/late", MIB)
    try:
        backup = node.started("backup", plain, FREEZE_TIMEOUT=60)
        with agent_hook(lab, plain, "freeze", "sleep 8"), backup as process:
            wait_until(lambda: held(node), 60, "the guest is being frozen")
            disk = rbd_disk("vdl", "vms/late").encode()
            lab.virsh("attach-device", plain, "/dev/stdin", "--config", "--live", stdin=disk)
            output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        assert "disk vdl (vms/late): attached or changed while the snapshots were made" in output
        images = node.report()["domains"][plain]["images"]
        assert [image["target"] for image in images] == ["vda", "vdl"]
    finally:
        lab.virsh("detach-disk", plain, "vdl", "--config", "--live")
        lab.delete_image("vms/late")


def _consistency(node: Node, domain: str) -> str:
    done = node.run("backup", domain)
    assert done.returncode == 0, done.stderr
    return str(node.report()["domains"][domain]["consistency"])


def _watchers(lab: Lab, spec: str) -> int:
    return len(json.loads(lab.rbd("status", "--format", "json", spec))["watchers"])


@contextmanager
def _written(lab: Lab, name: str) -> Iterator[None]:
    """Have another client have the image open for writing during the block."""
    before = _watchers(lab, f"vms/{name}")
    command = ["/usr/bin/python3", "-c", WRITER, str(lab.ceph_conf), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            process.stdout.readline()
            yield
        finally:
            process.kill()
    wait_until(lambda: _watchers(lab, f"vms/{name}") == before, 60, "Ceph has forgotten the client")
