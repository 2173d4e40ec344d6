"""Faults of our own processes: interrupted, killed, out of memory, out of time."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from tests.faults.provoke import (
    HeldBackRestic,
    deletions_held_back,
    freeze_status,
    frozen,
    held,
    kill,
    received_bytes,
    streaming,
)
from tests.integration.node import PREFIX, SLOW, Node, parent, snapshot_names, wait_until, within
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, MIB, WEB

# Python's wall clock, as after an admin or a time server has set it: the machine's own is not ours to set.
JUMPING_CLOCK = """
import datetime, os, time

def offset():
    try:
        return float(open(os.environ["CLOCK"]).read())
    except (OSError, ValueError):
        return 0

class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

real = time.time
time.time = lambda: real() + offset()
datetime.datetime = Jumping
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_run_leaves_nothing(node: Node, large: str, number: int, code: int) -> None:
    with node.started("backup", large, WEB, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: streaming(node), 60, "the second image is on its way")
        process.send_signal(number)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    report = node.report()
    assert report["exit_code"] == code
    assert report["domains"][large]["status"] == "failed"
    assert large not in {one["hostname"] for one in node.snapshots()}


def test_ctrl_c_in_a_terminal_reaches_workers_in_good_order(node: Node, large: str) -> None:
    with node.started("backup", large, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: streaming(node), 60, "the second image is on its way")
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert node.snapshots() == []


def test_a_second_signal_kills_the_workers_and_leaves_their_leftovers_to_the_next_run(
    node: Node, lab: Lab, large: str
) -> None:
    restic = HeldBackRestic(node, "vdb.img")
    with node.started("backup", large, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        (worker,) = node.workers()
        os.kill(worker, signal.SIGSTOP)  # it does not hear the first
        process.send_signal(signal.SIGINT)
        wait_until(lambda: _waits_for(worker, signal.SIGTERM), 20, "the first signal is acted on")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 130, output
    assert "SIGKILL" in node.report()["domains"][large]["reason"]
    assert node.snapshots() == []
    _next_run_tidies_up(node, lab, large)


def test_a_killed_worker_costs_its_own_domain(node: Node, lab: Lab, large: str) -> None:
    with node.started("backup", large, ARCHIVE, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: streaming(node), 60, "the second image is on its way")
        (restic,) = node.processes("--stdin-filename=vdb.img")
        kill(parent(restic))
        process.communicate(timeout=240)
    assert process.returncode == 3
    domains = node.report()["domains"]
    assert (domains[large]["status"], domains[ARCHIVE]["status"]) == ("failed", "saved")
    assert "SIGKILL" in domains[large]["reason"]
    assert {one["hostname"] for one in node.snapshots()} == {ARCHIVE}
    _next_run_tidies_up(node, lab, large)


@pytest.mark.parametrize("phase", ["prepare", "frozen", "manifest"])
def test_a_worker_may_be_killed_in_every_phase(node: Node, lab: Lab, phase: str) -> None:
    with _reached(phase, node, lab) as (main, worker):
        kill(worker)
        wait_until(lambda: not held(node), 5, "the guest was let go")
        wait_until(lambda: not _lives(main), 60, "the run has ended")
    web = node.report()["domains"][WEB]
    assert web["status"] == "failed"
    assert "SIGKILL" in web["reason"]
    assert node.snapshots() == []
    _next_run_tidies_up(node, lab, WEB)


def test_a_worker_that_is_killed_while_it_tidies_up_has_saved_its_domain(node: Node, lab: Lab) -> None:
    with deletions_held_back(node), node.started("backup", ARCHIVE, SNAPSHOT_DELETES=1) as process:
        wait_until(lambda: node.processes(": tidying up"), 60, "the snapshot is to be removed")
        kill(*node.processes(": tidying up"))
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 3, output
    archive = node.report()["domains"][ARCHIVE]
    assert (archive["status"], len(archive["images"])) == ("failed", 1), output
    assert archive["reason"] == "saved, but its worker process was killed by SIGKILL"
    assert len([one for one in node.snapshots() if "definition" in one["tags"]]) == 1, "it counts"
    wait_until(lambda: node.run_elsewhere("backup", ARCHIVE).returncode == 0, 60, "the lock has expired")
    assert snapshot_names(lab, f"vms/{ARCHIVE}") == []


@pytest.mark.parametrize("retry_for", [60, 0])
def test_a_domain_whose_worker_crashed_is_retried_once_its_lock_has_expired(
    node: Node, large: str, retry_for: int
) -> None:
    """With MIN_AGE too, where a domain that another run is backing up is skipped."""
    settings = {"INCLUDE_DOMAINS": [large], "MIN_AGE": 3600, "RETRY_FOR": retry_for, "LOCK_DURATION": 20}
    with node.started("backup", MAX_READ_RATE=SLOW, **settings) as process:
        wait_until(lambda: streaming(node), 60, "the second image is on its way")
        (worker,) = node.workers()
        os.kill(worker, signal.SIGABRT)
        output, _ = process.communicate(timeout=150)
    assert "Fatal Python error: Aborted" in output
    assert "its worker process was killed by SIGABRT" in output
    assert "its lock has not expired yet" in output
    assert process.returncode == 0, output
    assert node.report()["domains"][large]["status"] == "saved", output


@pytest.mark.parametrize("phase", ["prepare", "frozen", "streaming", "manifest"])
def test_the_main_process_may_be_killed_in_every_phase(node: Node, lab: Lab, phase: str) -> None:
    with _reached(phase, node, lab) as (main, worker):
        kill(main)
        with suppress(ProcessLookupError):  # the kernel has continued it already, and it has cleaned up
            os.kill(worker, signal.SIGCONT)
        wait_until(lambda: not node.processes(""), 60, "its worker has cleaned up, all have ended")
    assert not held(node)
    assert snapshot_names(lab, f"vms/{WEB}-root") == []
    assert node.snapshots("definition") == []
    _next_run_tidies_up(node, lab, WEB)


def test_what_a_killed_run_left_is_removed_by_the_next(node: Node, lab: Lab) -> None:
    uuid = lab.virsh("domuuid", ARCHIVE).strip()
    left = f"{PREFIX}{uuid}.20200101T000000Z-dead"
    others = f"{PREFIX}{uuid4()}.20200101T000000Z-dead"
    for name in (left, others):
        lab.rbd("snap", "create", "--no-progress", f"vms/{ARCHIVE}@{name}")
    try:
        done = node.run("backup", ARCHIVE)
        assert done.returncode == 0
        assert f"removed leftover snapshot {left}" in done.stderr
        assert snapshot_names(lab, f"vms/{ARCHIVE}") == [others], (
            "another domain's snapshot is not ours to remove"
        )
    finally:
        lab.rbd("snap", "rm", "--no-progress", f"vms/{ARCHIVE}@{others}")


def test_a_guest_thaws_within_seconds_after_worker_and_main_were_killed(node: Node, lab: Lab) -> None:
    with _reached("frozen", node, lab) as (main, worker):
        (watchdog,) = node.watchdogs()
        kill(main, worker)
        within(lambda: not held(node), 5, "the watchdog let the guest go")
        assert freeze_status(lab, WEB) == "thawed"
        lab.wait_for_ticks(WEB, beyond=lab.ticks(WEB))
        wait_until(lambda: watchdog not in node.processes(""), 10, "the watchdog has ended")
    assert node.snapshots() == []
    _next_run_tidies_up(node, lab, WEB)


def test_a_watchdog_that_is_stopped_is_replaced_before_worker_and_main_are_killed(
    node: Node, lab: Lab
) -> None:
    with _reached("frozen", node, lab) as (main, worker):
        (first,) = node.watchdogs()
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: node.watchdogs() and first not in node.watchdogs(), 20, "it was replaced")
        kill(main, worker)
        within(lambda: not held(node), 5, "the second watchdog let the guest go")
        assert freeze_status(lab, WEB) == "thawed"
        wait_until(lambda: not node.processes(""), 10, "all have ended")
    _next_run_tidies_up(node, lab, WEB)


def test_cleanup_thaws_a_guest_that_a_killed_run_without_watchdog_left_frozen(node: Node, lab: Lab) -> None:
    with _reached("frozen", node, lab) as (main, worker):
        os.kill(main, signal.SIGSTOP)  # or it would start another watchdog
        kill(*node.watchdogs(), worker, main)
        assert freeze_status(lab, WEB) == "frozen"
    node.run("cleanup")  # its lock may still be there, and with it its snapshots
    assert not held(node)
    assert freeze_status(lab, WEB) == "thawed"
    _next_run_tidies_up(node, lab, WEB)


def test_a_worker_that_is_out_of_memory_costs_its_own_domain(node: Node, lab: Lab, large: str) -> None:
    # librados without memory may just fall silent: the worker is hung after PHASE_MARGIN and these
    constants = {"LIBVIRT_TIMEOUT": 10, "CEPH_TIMEOUT": 10, "CEPH_STALL_TIMEOUT": 0}
    constants.update(OUTPUT_STALL_TIMEOUT=10, LOCK_WAIT=0, RETRY_FOR=0)
    with node.started("backup", large, ARCHIVE, MAX_READ_RATE=SLOW, **constants) as process:
        wait_until(lambda: received_bytes(node) > 4 * MIB, 60, "restic has got a part of the image")
        (restic,) = node.processes("--stdin-filename=vdb.img")
        resource.prlimit(parent(restic), resource.RLIMIT_AS, (MIB, MIB))
        output, _ = process.communicate(timeout=420)
    domains = node.report()["domains"]
    assert domains[ARCHIVE]["status"] == "saved"
    if "ending its worker" in output:  # as it hung: it is retried, with memory
        assert (process.returncode, domains[large]["status"]) == (0, "saved"), output
        assert {one["hostname"] for one in node.snapshots()} == {ARCHIVE, large}
        return
    assert (process.returncode, domains[large]["status"]) == (3, "failed"), output
    assert {one["hostname"] for one in node.snapshots()} == {ARCHIVE}
    _next_run_tidies_up(node, lab, large)


def test_a_full_runtime_directory_keeps_guests_from_being_frozen(node: Node) -> None:
    node.runtime_dir.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=0700", "tmpfs", node.runtime_dir], check=True)
    try:
        (node.runtime_dir / "filler").write_bytes(bytes(4096))
        done = node.run("backup", WEB, ARCHIVE)
    finally:
        subprocess.run(["umount", node.runtime_dir], check=True)
    assert done.returncode == 3
    domains = node.report()["domains"]
    assert (domains[WEB]["status"], domains[ARCHIVE]["status"]) == ("failed", "saved")
    assert (
        "the note that the guest is about to be frozen or paused: no space left on device"
        in domains[WEB]["reason"]
    )


@pytest.mark.parametrize("hours", [3, -3])
def test_a_clock_that_jumps_changes_nothing(node: Node, large: str, hours: int) -> None:
    (node.directory / "sitecustomize.py").write_text(JUMPING_CLOCK)
    node.environment = {"PYTHONPATH": str(node.directory), "CLOCK": str(node.directory / "clock")}
    restic = HeldBackRestic(node, "vdb.img")
    with node.started("backup", large, RESTIC_BINARY=restic.path, LOCK_DURATION=3) as process:
        restic.reached()
        (node.directory / "clock").write_text(str(hours * 3600))
        restic.let_go()
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    report = node.report()
    assert (report["started"] < report["finished"]) == (hours > 0), "the jump was noticed"
    assert 0 < report["domains"][large]["images"][1]["seconds"] < 600


@contextmanager
def _reached(phase: str, node: Node, lab: Lab) -> Iterator[tuple[int, int]]:
    """Have a run reach a phase; give the pids of the run and of its worker.

    They have ended after the block.
    """
    if phase == "frozen":
        with frozen(node, lab, WEB) as pids:
            yield pids
        return
    restic = HeldBackRestic(node, "=definition.tar" if phase == "manifest" else "=vdb.img")
    with node.started("backup", WEB, RESTIC_BINARY=restic.path) as process:
        if phase == "prepare":
            # one that has not begun would only be replaced
            begun = f"virt-rbd-backup: {WEB}: "
            wait_until(lambda: node.watchdogs() and node.processes(begun), 60, "the worker has begun")
        else:
            restic.reached()
        (worker,) = node.workers()
        yield process.pid, worker
        process.communicate(timeout=240)


def _waits_for(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process that stands still has been sent this signal."""
    pending = Path(f"/proc/{pid}/status").read_text().split("ShdPnd:")[1].split()[0]
    return bool(int(pending, 16) & 1 << (number - 1))


def _lives(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def _next_run_tidies_up(node: Node, lab: Lab, domain: str) -> None:
    """Have another node's next run remove what is left, once the dead run's lock has expired.

    A restic that is interrupted just as it begins may leave its lock, for this node's next run.
    """
    wait_until(lambda: node.run_elsewhere("backup", domain).returncode == 0, 60, "the lock has expired")
    assert snapshot_names(lab, "vms/large" if domain == "large" else f"vms/{WEB}-root") == []
    tags = {tag for one in node.snapshots() if one["hostname"] == domain for tag in one["tags"]}
    runs = [tag for tag in tags if tag.startswith("run=")]
    assert len(runs) == 1, "nothing is left of the run that was killed"
    assert node.report()["host"] == "other-node"
    assert node.run("backup", ARCHIVE).returncode == 0
