"""Faults of the cluster."""

from __future__ import annotations

import re

from tests.faults.provoke import held, received_bytes, stopped
from tests.integration.node import SLOW, Node, wait_until
from tests.lab import Lab, RbdDisk
from tests.lab.sample import ARCHIVE, MEDIA, MIB


def test_a_failing_domain_costs_no_other_domain(node: Node, lab: Lab) -> None:
    lab.define_domain("broken", [RbdDisk("vda", f"vms/{MEDIA}"), RbdDisk("vdb", "vms/no-such-image")])
    try:
        done = node.run("backup", "broken", ARCHIVE)
    finally:
        lab.undefine_domain("broken")
    assert done.returncode == 3
    domains = node.report()["domains"]
    assert (domains["broken"]["status"], domains[ARCHIVE]["status"]) == ("failed", "saved")
    assert "vms/no-such-image" in domains["broken"]["reason"]
    assert "hint: " in done.stderr
    assert {one["hostname"] for one in node.snapshots()} == {ARCHIVE}


def test_a_reader_that_fails_half_way_leaves_nothing_and_is_tried_once_more(
    node: Node, lab: Lab, large: str
) -> None:
    # a lock that has not to be renewed meanwhile: it is the reader that fails
    with node.started("backup", large, MAX_READ_RATE=SLOW, CEPH_TIMEOUT=4, LOCK_DURATION=60) as process:
        wait_until(lambda: received_bytes(node) > 8 * MIB, 60, "restic has got a part of the image")
        with stopped(lab.osd_pid):
            wait_until(lambda: not node.processes("--stdin"), 60, "the read times out and restic is gone")
        wait_until(lambda: node.processes("--stdin-filename=vda.img"), 90, "the second attempt")
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert re.search("failed: cannot read .* of image vms/large", output)
    assert "trying 1 failed domains once more" in output
    assert node.snapshots() == []


def test_the_guest_stands_still_no_longer_than_allowed_when_ceph_hangs(
    node: Node, lab: Lab, plain: str
) -> None:
    with node.started("backup", plain, FREEZE_TIMEOUT=6, CEPH_TIMEOUT=15) as process:
        wait_until(lambda: held(node), 60, "the guest is being frozen")
        with stopped(lab.mon_pid):  # it has a part in every snapshot, and none in what guests write
            wait_until(lambda: not held(node), 7, "the guest was let go")
            lab.wait_for_ticks(plain, beyond=lab.ticks(plain))
        output, _ = process.communicate(timeout=90)
    assert "the snapshots of vms/plain were not made within 5 s" in output
    assert process.returncode == 0, "what passes is tried once more"
    assert node.report()["domains"][plain]["status"] == "saved"
