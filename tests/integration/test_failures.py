"""What ordinary failures cost: their own domain, and nothing that stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.integration.node import PREFIX, Node, parent, snapshot_names, wait_until
from tests.lab import Lab, RbdDisk
from tests.lab.sample import ARCHIVE, DATABASE, MEDIA, MIB, WEB, make_image

SLOW = 4 * MIB  # bytes/s: with it, saving the large image takes longer than any test


@pytest.fixture(scope="module")
def large(lab: Lab) -> Iterator[str]:
    """A domain that is shut off, with two images, the second of which takes a while."""
    make_image(lab, "vms/large-first", 4 * MIB, {0: MIB})
    make_image(lab, "vms/large", 256 * MIB, {0: 200 * MIB})
    lab.define_domain("large", [RbdDisk("vda", "vms/large-first"), RbdDisk("vdb", "vms/large")])
    yield "large"
    lab.undefine_domain("large")
    lab.delete_image("vms/large-first")
    lab.delete_image("vms/large")


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(node: Node, large: str, number: int, code: int) -> None:
    with node.started("backup", large, WEB, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: _streaming(node), 60, "the second image is on its way")
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    report = node.report()
    assert report["exit_code"] == code
    assert report["domains"][large]["status"] == "failed"
    assert large not in {one["hostname"] for one in node.snapshots()}


def test_ctrl_c_in_a_terminal_reaches_workers_in_good_order(node: Node, large: str) -> None:
    with node.started("backup", large, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: _streaming(node), 60, "the second image is on its way")
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert node.snapshots() == []


def test_a_reader_that_fails_half_way_leaves_no_snapshot_and_no_lock(
    node: Node, lab: Lab, large: str
) -> None:
    # a lock that has not to be renewed meanwhile: it is the reader that fails
    with node.started("backup", large, MAX_READ_RATE=SLOW, CEPH_TIMEOUT=4, LOCK_DURATION=60) as process:
        wait_until(lambda: _received(node) > 8 * MIB, 60, "restic has got a part of the image")
        with stopped(lab.osd_pid):
            wait_until(lambda: not node.processes("--stdin"), 60, "the read times out and restic is gone")
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 3, output
    assert "cannot read" in output
    assert "vms/large" in output
    assert node.snapshots() == []


def test_restic_dying_half_way_fails_the_domain(node: Node, large: str) -> None:
    dying = _script(node, 'case "$*" in *vdb.img*) head --bytes=10000000 >/dev/null; kill -9 $$;; esac')
    done = node.run("backup", large, RESTIC_BINARY=str(dying))
    assert done.returncode == 3
    assert "SIGKILL" in node.report()["domains"][large]["reason"]
    assert node.snapshots() == []


def test_restic_that_saves_less_than_it_was_sent_is_found_out(node: Node, large: str) -> None:
    short = _script(node, 'case "$*" in *vdb.img*) head --bytes=10000000 | restic "$@"; exit;; esac')
    done = node.run("backup", large, RESTIC_BINARY=str(short))
    assert done.returncode == 3
    assert node.report()["domains"][large]["status"] == "failed"
    assert node.snapshots() == []


def test_a_killed_worker_costs_its_own_domain(node: Node, lab: Lab, large: str) -> None:
    with node.started("backup", large, ARCHIVE, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: _streaming(node), 60, "the second image is on its way")
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


def test_the_second_run_on_a_node_is_refused(node: Node, large: str) -> None:
    with node.started("backup", large, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: _streaming(node), 60, "the first run is busy")
        second = node.run("backup", ARCHIVE)
        assert second.returncode == 11
        assert "another run is active" in second.stderr
        assert node.run("cleanup").returncode == 11
        process.terminate()
        process.communicate(timeout=60)
    assert ARCHIVE not in {one["hostname"] for one in node.snapshots()}


def test_two_nodes_never_back_up_the_same_domain_at_once(node: Node, large: str, tmp_path: Path) -> None:
    with node.started("backup", large, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: _streaming(node), 60, "the first node is busy")
        other = node.run("backup", large, ARCHIVE, RUNTIME_DIR=str(tmp_path / "other-node"))
        assert other.returncode == 3
        domains = node.report()["domains"]
        assert (domains[large]["status"], domains[ARCHIVE]["status"]) == ("failed", "saved")
        assert "another run backs up this domain" in domains[large]["reason"]
        process.terminate()
        process.communicate(timeout=60)


def test_the_lock_is_kept_for_as_long_as_the_job_takes(
    node: Node, lab: Lab, large: str, tmp_path: Path
) -> None:
    with node.started("backup", large, MAX_READ_RATE=SLOW, LOCK_DURATION=3) as process:
        wait_until(lambda: _streaming(node), 60, "the first node is busy")
        began = time.monotonic()
        while time.monotonic() < began + 8:  # more than two durations: without renewal it would be free
            other = node.run("backup", large, RUNTIME_DIR=str(tmp_path / "other-node"))
            assert other.returncode == 3
            assert process.poll() is None
        process.terminate()
        process.communicate(timeout=60)


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


def test_a_required_freeze_that_can_not_be_had_fails_the_domain_alone(node: Node) -> None:
    done = node.run("backup", WEB, DATABASE, FREEZE="required")
    assert done.returncode == 3
    domains = node.report()["domains"]
    assert domains[WEB]["consistency"] == "filesystem"
    assert domains[DATABASE]["status"] == "failed"
    assert "guest agent" in domains[DATABASE]["reason"]


def test_a_guest_agent_that_does_not_answer_gets_its_domain_paused(node: Node, lab: Lab) -> None:
    _stop_agent(lab, WEB, seconds=20)
    done = node.run("backup", WEB, FREEZE_TIMEOUT=9)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: lab.hypervisor.agent_answers(WEB), 60, "the agent answers again")
    assert node.report()["domains"][WEB]["consistency"] == "paused"
    assert "warning: web01: not frozen" in done.stderr


@pytest.fixture
def plain(lab: Lab) -> Iterator[str]:
    """A running domain whose image has no exclusive lock.

    With one, QEMU itself makes the snapshot, and holds back the guest's writes until the monitor has
    answered, frozen or not.
    """
    lab.create_image("vms/plain", 64 * MIB, "--image-feature", "layering")
    lab.define_domain("plain", [RbdDisk("vda", "vms/plain")])
    lab.start_domain("plain", wait_for_agent=True)
    yield "plain"
    lab.destroy_domain("plain")
    lab.undefine_domain("plain")
    lab.delete_image("vms/plain")


def test_the_guest_stands_still_no_longer_than_allowed_when_ceph_hangs(
    node: Node, lab: Lab, plain: str
) -> None:
    with node.started("backup", plain, FREEZE_TIMEOUT=6, CEPH_TIMEOUT=15) as process:
        wait_until(lambda: _held(node), 60, "the guest is being frozen")
        with stopped(lab.mon_pid):  # it has a part in every snapshot, and none in what guests write
            wait_until(lambda: not _held(node), 7, "the guest was let go")
            lab.wait_for_ticks(plain, beyond=lab.ticks(plain))
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 3, output
    assert "were not made within 5 s" in node.report()["domains"][plain]["reason"]


def test_cleanup_lets_go_whom_a_killed_run_left_frozen(node: Node, lab: Lab) -> None:
    with node.started("backup", WEB) as process:
        wait_until(lambda: _held(node), 60, "the guest is being frozen")
        (worker,) = node.processes("spawn_main")
        process.kill()
        os.kill(worker, signal.SIGKILL)
    assert _held(node), "it was killed before it could let the guest go"
    node.run("cleanup")  # its lock may still be there, and with it its snapshots
    lab.wait_for_ticks(WEB, beyond=lab.ticks(WEB))
    assert not _held(node)
    wait_until(lambda: node.run("backup", WEB).returncode == 0, 60, "the dead run's lock has expired")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process of the lab stand still during the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _stop_agent(lab: Lab, name: str, seconds: int) -> None:
    """Have the guest agent stand still for a while; its channel stays open."""
    line = f"kill -STOP $(pidof qemu-ga); sleep {seconds}; kill -CONT $(pidof qemu-ga)"
    call = {"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", line]}}
    lab.virsh("qemu-agent-command", name, json.dumps(call))


def _streaming(node: Node) -> bool:
    """Tell whether restic is being fed the image that takes a while."""
    return bool(node.processes("--stdin-filename=vdb.img"))


def _received(node: Node) -> int:
    """Tell how many bytes restic has read, while it is fed the image that takes a while."""
    for pid in node.processes("--stdin-filename=vdb.img"):
        return int(re.findall(r"rchar: (\d+)", Path(f"/proc/{pid}/io").read_text())[0])
    return 0


def _held(node: Node) -> bool:
    """Tell whether a guest is noted as held still."""
    return bool(list(node.runtime_dir.glob("held/*.json")))


def _script(node: Node, lines: str) -> Path:
    """Make a restic that does something else in some cases."""
    path = node.directory / "restic"
    path.write_text(f'#!/bin/sh\n{lines}\nexec restic "$@"\n')
    path.chmod(0o755)
    return path
