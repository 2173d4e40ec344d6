"""Faults of our own processes: interrupted, killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

from tests.faults.provoke import held, streaming
from tests.integration.node import PREFIX, SLOW, Node, parent, snapshot_names, wait_until
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, WEB


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(node: Node, large: str, number: int, code: int) -> None:
    with node.started("backup", large, WEB, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: streaming(node), 60, "the second image is on its way")
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    report = node.report()
    assert report["exit_code"] == code
    assert report["domains"][large]["status"] == "failed"
    assert large not in {one["hostname"] for one in node.snapshots()}


def test_ctrl_c_in_a_terminal_reaches_workers_in_good_order(node: Node, large: str) -> None:
    with node.started("backup", large, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: streaming(node), 60, "the second image is on its way")
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert node.snapshots() == []


def test_a_killed_worker_costs_its_own_domain(node: Node, lab: Lab, large: str) -> None:
    with node.started("backup", large, ARCHIVE, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: streaming(node), 60, "the second image is on its way")
        (restic,) = node.processes("--stdin-filename=vdb.img")
        os.kill(parent(restic), signal.SIGKILL)
        process.communicate(timeout=60)
    assert process.returncode == 3
    domains = node.report()["domains"]
    assert (domains[large]["status"], domains[ARCHIVE]["status"]) == ("failed", "saved")
    assert "SIGKILL" in domains[large]["reason"]
    assert {one["hostname"] for one in node.snapshots()} == {ARCHIVE}
    # the lock outlives its holder for LOCK_DURATION; then the next run removes what is left
    assert snapshot_names(lab, "vms/large") != []
    wait_until(
        lambda: node.run("cleanup").returncode == 0 and not snapshot_names(lab, "vms/large"), 60, "cleaned"
    )
    assert node.run("backup", large).returncode == 0


def test_what_a_killed_run_left_is_removed_by_the_next(node: Node, lab: Lab) -> None:
    uuid = lab.virsh("domuuid", ARCHIVE).strip()
    left = f"{PREFIX}{uuid}.20200101T000000Z-dead"
    others = f"{PREFIX}{uuid4()}.20200101T000000Z-dead"
    for name in (left, others):
        lab.rbd("snap", "create", "--no-progress", f"vms/{ARCHIVE}@{name}")
    try:
        done = node.run("backup", ARCHIVE)
        assert done.returncode == 0
        assert f"removed snapshot {left}" in done.stderr
        assert snapshot_names(lab, f"vms/{ARCHIVE}") == [others], (
            "another domain's snapshot is not ours to remove"
        )
    finally:
        lab.rbd("snap", "rm", "--no-progress", f"vms/{ARCHIVE}@{others}")


def test_a_guest_thaws_within_seconds_after_worker_and_main_were_killed(node: Node, lab: Lab) -> None:
    with _frozen(node, lab) as main:
        (watchdog,) = node.watchdogs()
        _kill(main, *node.workers())
        wait_until(lambda: not held(node), 5, "the watchdog let the guest go")
        assert _status(lab) == "thawed"
        lab.wait_for_ticks(WEB, beyond=lab.ticks(WEB))
        wait_until(lambda: watchdog not in node.processes(""), 10, "the watchdog has ended")
    assert WEB not in {one["hostname"] for one in node.snapshots()}
    _tidy_up(node, lab)


def test_cleanup_lets_go_whom_a_killed_run_left_frozen_without_its_watchdog(node: Node, lab: Lab) -> None:
    with _frozen(node, lab) as main:
        _kill(*node.watchdogs(), main, *node.workers())
        assert _status(lab) == "frozen"
    node.run("cleanup")  # its lock may still be there, and with it its snapshots
    assert not held(node)
    assert _status(lab) == "thawed"
    _tidy_up(node, lab)


@contextmanager
def _frozen(node: Node, lab: Lab) -> Iterator[int]:
    """Have a run whose worker stands still just after it has frozen the guest; give the run's pid."""
    with node.started("backup", WEB) as process:
        wait_until(lambda: held(node), 60, "the guest is being frozen")
        (worker,) = node.workers()
        for _ in range(200):  # in small steps: between the freeze and the thaw lies the making of snapshots
            os.kill(worker, signal.SIGSTOP)
            if _status(lab) == "frozen":
                break
            os.kill(worker, signal.SIGCONT)
        assert _status(lab) == "frozen"
        yield process.pid


def _status(lab: Lab) -> str:
    """Ask the guest agent whether file systems are frozen; it tells so in either case."""
    answer = lab.virsh("qemu-agent-command", WEB, '{"execute": "guest-fsfreeze-status"}')
    return str(json.loads(answer)["return"])


def _kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def _tidy_up(node: Node, lab: Lab) -> None:
    """Have the next run on the node remove what is left, as soon as the dead run's lock has expired."""
    wait_until(lambda: node.run("backup", WEB).returncode == 0, 60, "the dead run's lock has expired")
    assert snapshot_names(lab, f"vms/{WEB}-root") == []
