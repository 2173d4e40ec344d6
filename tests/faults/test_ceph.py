"""Faults of the cluster."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.provoke import (
    HeldBackRestic,
    deletions_held_back,
    freeze_status,
    frozen,
    held,
    held_for,
    kill,
    received_bytes,
    stopped,
)
from tests.integration.node import SLOW, Node, snapshot_names, wait_until, within
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


def test_an_osd_that_hangs_from_the_start_fails_the_run_in_good_time(node: Node, lab: Lab) -> None:
    with stopped(lab.osd_pid):
        done = node.run("backup", ARCHIVE, CEPH_TIMEOUT=3, CEPH_STALL_TIMEOUT=4)
    assert done.returncode == 3
    assert "no answer within 3 s" in done.stderr
    assert "retrying 1 failed domains: " in done.stderr
    _next_run_tidies_up(node, ARCHIVE)  # the OSD may have locked, without anybody to be told


def test_an_osd_that_hangs_while_a_guest_is_frozen_fails_its_domain(node: Node, lab: Lab, plain: str) -> None:
    with frozen(node, lab, plain, FREEZE_TIMEOUT=9, CEPH_TIMEOUT=3) as (_, worker):
        with stopped(lab.osd_pid):
            os.kill(worker, signal.SIGCONT)
            wait_until(lambda: held_for(node) > 6, 60, "it was frozen for longer than Ceph may take")
        within(lambda: not held(node), 15, "the guest was let go")
        lab.wait_for_ticks(plain, beyond=lab.ticks(plain))
    assert freeze_status(lab, plain) == "thawed"
    _next_run_tidies_up(node, plain)


def test_a_reader_that_fails_half_way_leaves_nothing_and_is_tried_once_more(
    node: Node, lab: Lab, large: str
) -> None:
    # a lock that has not to be renewed meanwhile: it is the reader that fails
    constants = {"MAX_READ_RATE": SLOW, "CEPH_TIMEOUT": 4, "CEPH_STALL_TIMEOUT": 0, "LOCK_DURATION": 60}
    with node.started("backup", large, **constants) as process:
        wait_until(lambda: received_bytes(node) > 8 * MIB, 60, "restic has got a part of the image")
        with stopped(lab.osd_pid):
            wait_until(lambda: not node.processes("--stdin"), 60, "the read times out and restic is gone")
        wait_until(lambda: node.processes("--stdin-filename=vda.img"), 90, "the second attempt")
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert re.search("failed: cannot read .* of image vms/large", output)
    assert "retrying 1 failed domains: " in output
    assert node.snapshots() == []


def test_an_osd_that_is_killed_and_restarted_costs_nothing(node: Node, lab: Lab, large: str) -> None:
    restic = HeldBackRestic(node, "vdb.img")
    with node.started("backup", large, RESTIC_BINARY=restic.path, LOCK_DURATION=60) as process:
        restic.reached()
        kill(lab.osd_pid)
        restic.let_go()
        wait_until(lambda: lab.cluster.osd.pid is None, 20, "it is gone")
        lab.cluster.osd.start()
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    assert "failed domains" not in output


def test_a_snapshot_that_cannot_be_deleted_is_reported_and_removed_by_the_next_run(
    node: Node, lab: Lab
) -> None:
    restic = HeldBackRestic(node, "=definition.tar")
    constants = {
        "RESTIC_BINARY": restic.path,
        "CEPH_TIMEOUT": 3,
        "CEPH_STALL_TIMEOUT": 0,
        "SNAPSHOT_DELETES": 1,
    }
    with deletions_held_back(node) as delete, node.started("backup", ARCHIVE, **constants) as process:
        restic.reached()
        with stopped(lab.osd_pid):
            delete()
            restic.let_go()
            output, _ = process.communicate(timeout=90)
    assert process.returncode == 3, output
    assert node.report()["domains"][ARCHIVE]["reason"].startswith("saved, but cannot remove snapshot")
    assert len(node.snapshots()) == 2, "it is complete"
    _next_run_tidies_up(node, ARCHIVE)


def test_a_snapshot_with_clones_is_reported_until_it_can_be_removed(node: Node, lab: Lab) -> None:
    restic = HeldBackRestic(node, "vda.img")
    with node.started("backup", ARCHIVE, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        (name,) = snapshot_names(lab, f"vms/{ARCHIVE}")
        lab.rbd("snap", "protect", f"vms/{ARCHIVE}@{name}")
        restic.let_go()
        process.communicate(timeout=60)
    try:
        assert process.returncode == 3
        again = node.run("backup", ARCHIVE)
        assert snapshot_names(lab, f"vms/{ARCHIVE}") == [name]
    finally:
        lab.rbd("snap", "unprotect", f"vms/{ARCHIVE}@{name}")
    assert again.returncode == 3
    reason = node.report()["domains"][ARCHIVE]["reason"]
    assert reason.startswith("saved, but cannot remove snapshot")
    assert "it is protected, or has clones" in reason
    assert len(node.snapshots("definition")) == 2, "each run has saved it"
    assert node.run("cleanup").returncode == 0


def test_a_snapshot_that_is_removed_under_us_is_no_backup(node: Node, lab: Lab, large: str) -> None:
    restic = HeldBackRestic(node, "vdb.img")
    with node.started("backup", large, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        (name,) = snapshot_names(lab, "vms/large")
        lab.rbd("snap", "rm", "--no-progress", f"vms/large@{name}")
        restic.let_go()
        process.communicate(timeout=60)
    assert process.returncode == 3
    assert "was removed while it was read" in node.report()["domains"][large]["reason"]
    assert node.snapshots() == []


def test_a_user_who_may_not_make_snapshots_fails_the_domain_with_what_to_grant(node: Node, lab: Lab) -> None:
    with _allowed(lab, "profile rbd-read-only"):
        done = node.run("backup", ARCHIVE)
    assert done.returncode == 3
    assert "operation not permitted" in node.report()["domains"][ARCHIVE]["reason"]
    assert "hint: ceph auth caps client.libvirt" in done.stderr
    assert node.snapshots() == []


def test_the_guest_is_frozen_no_longer_than_allowed_when_ceph_hangs(node: Node, lab: Lab, plain: str) -> None:
    with node.started("backup", plain, FREEZE_TIMEOUT=6, CEPH_TIMEOUT=15) as process:
        wait_until(lambda: held(node), 60, "the guest is being frozen")
        with stopped(lab.mon_pid):  # it has a part in every snapshot, and none in what guests write
            within(lambda: not held(node), 7, "the guest was let go")
            lab.wait_for_ticks(plain, beyond=lab.ticks(plain))
        output, _ = process.communicate(timeout=90)
    assert "the snapshots of vms/plain were not made within 5 s" in output
    assert process.returncode == 0, "a transient error is retried"
    assert node.report()["domains"][plain]["status"] == "saved"


def _next_run_tidies_up(node: Node, domain: str) -> None:
    """Have the next run remove what is left, as soon as the lock of the failed one has expired."""
    wait_until(lambda: node.run("backup", domain).returncode == 0, 60, "saved, and nothing is left")


@contextmanager
def _allowed(lab: Lab, capabilities: str) -> Iterator[None]:
    """Let the domains' cephx user do only this during the block, in all pools."""
    user = f"client.{lab.ceph_user}"
    before = lab.ceph("auth", "get", user)
    lab.ceph("auth", "caps", user, "mon", "profile rbd", "osd", capabilities)
    try:
        yield
    finally:
        pairs = [word for match in re.findall(r'caps (\w+) = "(.*)"', before) for word in match]
        lab.ceph("auth", "caps", user, *pairs)
