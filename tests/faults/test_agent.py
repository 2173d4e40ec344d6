"""Faults of the guest agent."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from typing import Callable

import pytest

from tests.faults.provoke import (
    AGENT,
    ONCE_FROZEN,
    agent_hook,
    agent_without,
    done_in_guest,
    freeze_status,
    frozen,
    held,
    held_before_freeze,
    in_guest,
    kill_agent,
    stop_agent,
)
from tests.integration.node import Node, wait_until, within
from tests.lab import Lab
from tests.lab.sample import DATABASE, WEB


@pytest.fixture(autouse=True)
def agent_is_back(node: Node, lab: Lab) -> Iterator[None]:
    yield
    wait_until(lambda: lab.hypervisor.agent_answers(WEB), 120, "the agent answers again")


def test_a_required_freeze_that_is_impossible_fails_the_domain_alone(node: Node) -> None:
    done = node.run("backup", WEB, DATABASE, FREEZE="required")
    assert done.returncode == 3
    domains = node.report()["domains"]
    assert domains[WEB]["consistency"] == "filesystem"
    assert domains[DATABASE]["status"] == "failed"
    assert "guest agent" in domains[DATABASE]["reason"]


def test_a_guest_agent_that_does_not_answer_gets_its_domain_paused(node: Node, lab: Lab) -> None:
    _saved(node, lab, "paused", "not frozen: ", partial(stop_agent, lab, WEB, seconds=20), FREEZE_TIMEOUT=9)


def test_a_guest_agent_that_died_gets_its_domain_paused(node: Node, lab: Lab) -> None:
    _saved(node, lab, "paused", "not frozen: no guest agent is connected", partial(_killed, lab, seconds=15))


def test_the_agent_of_a_domain_that_has_just_started_is_waited_for(node: Node, lab: Lab) -> None:
    _killed(lab, seconds=40)
    text = "the domain has just started: waiting up to "  # which counts from the start of QEMU
    done = node.run("backup", WEB, AGENT_BOOT_TIMEOUT=86400, FREEZE="required")
    assert done.returncode == 0, done.stderr
    assert f"web01: {text}" in done.stderr
    assert node.report()["domains"][WEB]["consistency"] == "filesystem"
    _moves(node, lab)


def test_a_required_freeze_that_fails_is_retried_at_the_end_of_the_run(node: Node, lab: Lab) -> None:
    with held_before_freeze(node, WEB, RETRY_FOR=40, FREEZE="required") as (run, go_on):
        _killed(lab, seconds=15)
        go_on()
        output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert "web01: failed: no guest agent is connected" in output
    assert node.report()["domains"][WEB]["consistency"] == "filesystem"
    _moves(node, lab)


def test_a_freeze_that_fails_gets_the_domain_paused(node: Node, lab: Lab) -> None:
    with agent_hook(lab, WEB, "freeze", "exit 1"):
        _saved(node, lab, "paused", "not frozen: cannot freeze the guest's file systems")


FREEZING = tuple(f"guest-fsfreeze-{command}" for command in ("status", "freeze", "freeze-list", "thaw"))


def test_an_agent_that_may_not_freeze_gets_its_domain_paused_and_nothing_stays(node: Node, lab: Lab) -> None:
    with agent_without(lab, WEB, *FREEZING):
        began = time.monotonic()
        done = node.run("backup", WEB, RETRY_FOR=0, FREEZE_TIMEOUT=110)
        assert time.monotonic() - began < 100, "no thaw was retried for FREEZE_TIMEOUT"
        assert done.returncode == 0, done.stderr
        assert "may still be frozen" not in done.stderr
        assert "(hint: permit guest-fsfreeze-freeze, " in done.stderr
        assert node.report()["domains"][WEB]["consistency"] == "paused"
        assert not held(node)
        done = node.run("backup", WEB, FREEZE="required")
        assert done.returncode == 3
        assert not held(node)
    _moves(node, lab)


def test_an_agent_that_may_not_freeze_does_not_keep_the_record_of_a_killed_run(node: Node, lab: Lab) -> None:
    with agent_without(lab, WEB, *FREEZING):
        note = {
            "uuid": lab.virsh("domuuid", WEB).strip(),
            "name": WEB,
            "hold": "freeze",
            "uri": lab.libvirt_uri,
        }
        node.runtime_dir.mkdir(mode=0o700, exist_ok=True)
        node.runtime_dir.chmod(0o700)
        (node.runtime_dir / "held").mkdir()
        (node.runtime_dir / f"held/{note['uuid']}.json").write_text(json.dumps(note))
        done = node.run("cleanup")
        assert done.returncode == 0, done.stderr
        assert not held(node)


def test_a_freeze_hook_that_takes_too_long_is_named_and_the_domain_is_paused(node: Node, lab: Lab) -> None:
    with agent_hook(lab, WEB, "freeze", "sleep 6"):
        _saved(node, lab, "paused", "not frozen: cannot freeze the guest's file systems", FREEZE_TIMEOUT=9)


def test_a_freeze_hook_that_outlasts_the_thaw_costs_the_domain_a_retry_without_a_freeze(
    node: Node, lab: Lab
) -> None:
    with agent_hook(lab, WEB, "freeze", "sleep 22"):
        done = node.run("backup", WEB, FREEZE_TIMEOUT=12)
        assert done.returncode == 0, done.stderr
        assert "a freeze hook in the guest probably takes longer than 4 s, or hangs" in done.stderr
        assert node.report()["domains"][WEB]["consistency"] == "paused"
        _moves(node, lab)


def test_a_freeze_hook_that_hangs_leaves_no_guest_frozen(node: Node, lab: Lab) -> None:
    with agent_hook(lab, WEB, "freeze", "sleep 75"):  # longer than the run: for ever
        done = node.run("backup", WEB, FREEZE_TIMEOUT=6)
        assert done.returncode == 3, done.stderr
        assert node.report()["errors"] == ["web01: the guest may still be frozen after the run"]
        assert node.report()["domains"][WEB]["status"] == "saved"
        assert "a freeze hook in the guest probably takes longer than 2 s, or hangs" in done.stderr
        assert node.report()["domains"][WEB]["consistency"] == "crash"
        wait_until(lambda: not held(node), 130, "the watchdog has thawed it")
        _moves(node, lab)


MANY_MOUNTS = """
while read -r device at rest; do case $device in /dev/vd*) break ;; esac; done </proc/mounts
n=0
while [ $n -lt 257 ]; do n=$((n + 1)); mkdir -p /run/many/$n; mount -o bind $at /run/many/$n; done
"""
NO_MORE_MOUNTS = "for at in /run/many/*; do [ ! -d $at ] || { umount $at && rmdir $at; }; done"

# The agent freezes in the reverse order of mounts: the disk's first, as it is mounted again after the file.
LOOP_FILE = """
cd /run && mkdir -p in-file again && dd if=/dev/zero of=/mnt/vda/file bs=1M count=4 &&
losetup /dev/loop0 /mnt/vda/file && {more}
mkfs.ext4 -q /dev/{device} && mount -t ext4 /dev/{device} in-file &&
mount -o bind /mnt/vda again &&
(while [ -e /mnt/vda/file ]; do sleep 0.1; date >>in-file/dates; done) & sleep 5
"""
# An array of the file alone. libvirt names no disk below it, as if it were on one that it does not know.
RAID = """
echo md127 >/sys/module/md_mod/parameters/new_array && cd /sys/block/md127/md &&
echo none >metadata_version && echo raid0 >level && echo 65536 >chunk_size && echo 1 >raid_disks &&
echo 7:0 >new_dev && echo 4096 >dev-loop0/size && echo 0 >dev-loop0/slot && echo active >array_state &&
cd /run &&
"""
NO_LOOP_FILE = """
cd /
for at in /run/again /run/in-file; do while grep -q " $at " /proc/mounts; do umount $at; done; done
[ ! -e /sys/block/md127/md ] || echo clear >/sys/block/md127/md/array_state
losetup -d /dev/loop0; rm /mnt/vda/file
"""


@pytest.mark.parametrize(("device", "more"), [("loop0", ""), ("md127", RAID)], ids=["in it", "on RAID in it"])
@pytest.mark.parametrize("many", [False, True], ids=["few mounts", "many mounts"])
def test_a_file_system_in_a_file_of_a_frozen_one_blocks_no_agent(
    node: Node, lab: Lab, device: str, more: str, many: bool
) -> None:
    done_in_guest(lab, WEB, LOOP_FILE.format(device=device, more=more.strip()))
    try:
        if many:
            done_in_guest(lab, WEB, MANY_MOUNTS)
        done = node.run("backup", WEB, FREEZE="required", FREEZE_TIMEOUT=180)
    finally:
        done_in_guest(lab, WEB, NO_MORE_MOUNTS + NO_LOOP_FILE)
    assert done.returncode == 0, done.stderr
    assert "web01: not frozen, as they are, or may be, in files of the guest: /run/in-file" in done.stderr
    assert node.report()["domains"][WEB]["consistency"] == "filesystem"
    _moves(node, lab)


def test_a_thaw_that_fails_twice_is_tried_until_it_works(node: Node, lab: Lab) -> None:
    with agent_hook(
        lab, WEB, "thaw", "echo >>/run/on-thaw.count; [ $(wc -l </run/on-thaw.count) -gt 2 ] || exit 1"
    ):
        # only the first has thawed anything, and failed after it: nobody can tell that it was in time
        _saved(node, lab, "crash", "the guest thawed before its snapshots were complete")


def test_a_guest_agent_that_is_stopped_while_frozen_is_retried_until_it_answers(node: Node, lab: Lab) -> None:
    in_guest(lab, WEB, f"{ONCE_FROZEN}\nkill -STOP {AGENT}; sleep 8; kill -CONT {AGENT}")
    _saved_although_silent_while_frozen(node, lab)


def test_a_guest_agent_that_dies_while_frozen_is_waited_for(node: Node, lab: Lab) -> None:
    kill_agent(lab, WEB, seconds=6, when=ONCE_FROZEN)
    _saved_although_silent_while_frozen(node, lab)
    assert node.report()["domains"][WEB]["consistency"] == "filesystem"


def test_a_guest_that_somebody_else_froze_is_left_as_found(node: Node, lab: Lab) -> None:
    lab.virsh("domfsfreeze", WEB)
    try:
        done = node.run("backup", WEB)
        assert freeze_status(lab, WEB) == "frozen"
    finally:
        lab.virsh("domfsthaw", WEB)
    assert done.returncode == 0, done.stderr
    assert "warning: web01: not frozen: another program has already frozen the guest" in done.stderr
    assert node.report()["domains"][WEB]["consistency"] == "crash"


def test_a_guest_with_more_mounts_than_libvirt_lists_is_frozen(node: Node, lab: Lab) -> None:
    done_in_guest(lab, WEB, MANY_MOUNTS)
    try:
        # an agent needs seconds for all
        done = node.run("backup", WEB, FREEZE="required", FREEZE_TIMEOUT=180)
    finally:
        done_in_guest(lab, WEB, NO_MORE_MOUNTS)
    assert done.returncode == 0, done.stderr
    assert node.report()["domains"][WEB]["consistency"] == "filesystem"
    _moves(node, lab)


def _killed(lab: Lab, seconds: int) -> None:
    """Kill the agent, for a while, and wait until libvirt knows it."""
    kill_agent(lab, WEB, seconds)
    wait_until(lambda: "state='disconnected'" in lab.virsh("dumpxml", WEB), 60, "it is dead")


def _saved(
    node: Node,
    lab: Lab,
    consistency: str,
    message: str,
    at_the_freeze: Callable[[], None] = lambda: None,
    **constants: object,
) -> None:
    """Back the domain up while its agent is at fault, and see that it is saved as well as can be."""
    with held_before_freeze(node, WEB, RETRY_FOR=0, **constants) as (run, go_on):
        at_the_freeze()
        go_on()
        output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert f"web01: {message}" in output
    assert node.report()["domains"][WEB]["consistency"] == consistency
    _moves(node, lab)


def _saved_although_silent_while_frozen(node: Node, lab: Lab) -> None:
    with frozen(node, lab, WEB, FREEZE_TIMEOUT=30) as (_, worker):
        wait_until(lambda: not lab.hypervisor.agent_answers(WEB), 20, "the agent says nothing more")
        os.kill(worker, signal.SIGCONT)
        within(lambda: not held(node), 33, "the guest was let go")
    saved = node.report()["domains"][WEB]
    assert saved["status"] == "saved"
    assert saved["frozen_seconds"] > 2
    _moves(node, lab)


def _moves(node: Node, lab: Lab) -> None:
    assert not held(node)
    wait_until(lambda: lab.hypervisor.agent_answers(WEB), 60, "the agent answers again")
    assert freeze_status(lab, WEB) == "thawed"
