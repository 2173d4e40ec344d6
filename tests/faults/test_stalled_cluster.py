"""A cluster that does not answer for a while outside the quiesced moment: the job goes on where it was."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping

import rados

from tests.faults.provoke import (
    HeldBackRestic,
    deletions_held_back,
    lines_until,
    received_bytes,
    restic_script,
    stopped,
)
from tests.integration.node import SLOW, Node, snapshot_names, wait_until, within
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, MIB

STALL = 100  # seconds
CONSTANTS: Mapping[str, object] = {"MAX_READ_RATE": SLOW, "CEPH_TIMEOUT": 5, "CEPH_STALL_TIMEOUT": 300}
WAITING = "the cluster has not answered for 5 s; waiting up to 300 s (CEPH_STALL_TIMEOUT)"


def test_an_osd_that_is_silent_in_mid_stream_costs_time_and_nothing_else(
    node: Node, lab: Lab, large: str
) -> None:
    log = node.directory / "calls"
    restic = restic_script(node, f'echo "$*" >>{log}')
    with node.started("backup", large, **CONSTANTS, RESTIC_BINARY=restic) as process:
        wait_until(lambda: received_bytes(node) > 8 * MIB, 60, "restic has got a part of the image")
        with stopped(lab.osd_pid):  # for much longer than LOCK_DURATION
            time.sleep(STALL)
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    assert output.count(WAITING) == 1, output
    assert "the cluster answers again, after" in output
    assert "cannot renew the domain's lock: " in output
    assert "the domain's lock is renewed again" in output
    assert "failed domains" not in output
    calls = log.read_text().splitlines()
    assert len([call for call in calls if "--stdin-filename=vdb.img" in call]) == 1
    (saved,) = [one for one in node.report()["domains"][large]["images"] if one["target"] == "vdb"]
    exported = lab.rbd("export", "--no-progress", "vms/large", "-")
    assert node.dump(saved["restore_id"], "vdb.img") == exported


def test_an_osd_that_is_silent_from_the_start_costs_time_and_nothing_else(node: Node, lab: Lab) -> None:
    with node.started("backup", ARCHIVE, **CONSTANTS) as process:
        with stopped(lab.osd_pid):
            lines = lines_until(process, WAITING)
            time.sleep(10)
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, "".join(lines) + output
    assert "failed domains" not in output


def test_a_stop_is_heard_within_seconds_while_an_osd_is_silent(node: Node, lab: Lab, large: str) -> None:
    constants = {**CONSTANTS, "CEPH_TIMEOUT": 15}
    with node.started("backup", large, **constants) as process:
        wait_until(lambda: received_bytes(node) > 8 * MIB, 60, "restic has got a part of the image")
        with stopped(lab.osd_pid):
            wait_until(lambda: _takes_nothing(node), 30, "what was read ahead has been taken")
            process.terminate()
            within(lambda: not node.processes("--stdin"), 5, "restic was interrupted")
            # reads under way time out, then the cluster is asked once whether it answers again
            output, _ = process.communicate(timeout=2 * 15 + 10)
    assert process.returncode == 143, output
    assert node.snapshots() == []
    _next_run_tidies_up(node, large)


def test_a_lock_that_another_node_has_had_meanwhile_is_lost_and_the_domain_tried_again(
    node: Node, lab: Lab, large: str
) -> None:
    with node.started("backup", large, **CONSTANTS) as process:
        wait_until(lambda: received_bytes(node) > 8 * MIB, 60, "restic has got a part of the image")
        _remove_lock(lab)  # as who had it does in the end
        lines = lines_until(process, "retrying 1 failed domains")
        output, _ = process.communicate(timeout=120)
    output = "".join(lines) + output
    assert "lost the domain's lock" in output
    assert "retrying 1 failed domains: " in output
    assert process.returncode == 0, output


def test_snapshots_are_removed_when_the_cluster_answers_again(node: Node, lab: Lab) -> None:
    restic = HeldBackRestic(node, "=definition.tar")
    constants = {"RESTIC_BINARY": restic.path, "CEPH_TIMEOUT": 3, "SNAPSHOT_DELETES": 1}
    with deletions_held_back(node) as delete, node.started("backup", ARCHIVE, **constants) as process:
        restic.reached()
        with stopped(lab.osd_pid):
            delete()
            restic.let_go()
            lines = lines_until(process, "the cluster has not answered for 3 s")
            time.sleep(7)  # it is retried more than once
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, "".join(lines) + output
    assert snapshot_names(lab, f"vms/{ARCHIVE}") == []


def _remove_lock(lab: Lab) -> None:
    with rados.Rados(conffile=str(lab.ceph_conf)) as cluster, cluster.open_ioctx("vms") as pool:
        (lock,) = [one.key for one in pool.list_objects() if one.key.startswith("virt-rbd-backup.lock.")]
        pool.remove_object(lock)


def _takes_nothing(node: Node) -> bool:
    """Tell whether restic gets no more bytes, half a second long."""
    before = received_bytes(node)
    time.sleep(0.5)
    return received_bytes(node) == before


def _next_run_tidies_up(node: Node, domain: str) -> None:
    """Have the next run remove what is left, as soon as the lock has expired."""

    def run() -> subprocess.CompletedProcess[str]:
        return node.run("backup", domain)

    wait_until(lambda: run().returncode == 0, 60, "saved, and nothing is left")
