"""Hooks and notifications around backups of real guests."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.faults.provoke import done_in_guest
from tests.integration.left_behind import left_behind
from tests.integration.node import Node, wait_until
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, DATABASE, WEB
from tests.unit.hook_files import HookFiles
from tests.unit.waiting import runs

IN_GUEST = Path(__file__).parents[2] / "res/hooks/in-guest"


@pytest.fixture
def files(node: Node) -> HookFiles:
    files = HookFiles(node.directory)
    node.constants["HOOKS"] = str(files.directory)
    return files


def test_a_run_with_hooks_in_all_phases_and_notifications(node: Node, files: HookFiles, lab: Lab) -> None:
    told = node.directory / "told"
    notify = node.directory / "notify"
    notify.write_text(f"#!/bin/sh\ncat >{told}; exit 1\n")
    notify.chmod(0o700)
    call = """'{"execute": "guest-fsfreeze-status"}'"""
    status = f'virsh qemu-agent-command "$VIRT_RBD_BACKUP_UUID" --timeout 30 {call}'
    for name in ("before-run", "before-freeze", "after-thaw", "after-job", "after-run"):
        files.add(f"{name}.d/10-x", status if name in ("before-freeze", "after-thaw") else "")
    files.add("before-freeze.d/20-slow", "sleep 10")
    files.add("after-thaw.d/20-slow", "sleep 10")
    done = node.run("backup", WEB, NOTIFY_COMMAND=[str(notify)], NOTIFY_ON="always")
    assert done.returncode == 0, done.stderr
    assert files.ran == [
        "before-run.d/10-x",
        "before-freeze.d/10-x",
        "before-freeze.d/20-slow",
        "after-thaw.d/10-x",
        "after-thaw.d/20-slow",
        "after-job.d/10-x",
        "after-run.d/10-x",
    ]
    assert done.stderr.count('10-x: {"return":"thawed"}') == 2, "no guest is frozen while a hook runs"
    assert node.report()["domains"][WEB]["frozen_seconds"] < 10
    assert json.loads(told.read_text()) == json.loads(node.report_file.read_text())
    assert f"error: notification failed: {notify} failed with exit code 1\n" in done.stderr


def test_a_hook_that_fails_or_hangs_costs_its_own_domain_alone(node: Node, files: HookFiles) -> None:
    files.add(
        "before-freeze.d/10-x",
        f'case "$VIRT_RBD_BACKUP_DOMAIN" in {WEB}) exit 3;; {DATABASE}) sleep 1000 & wait;; esac',
    )
    done = node.run("backup", WEB, DATABASE, ARCHIVE, HOOK_TIMEOUT=10)
    assert done.returncode == 3
    domains = node.report()["domains"]
    assert {name: (one["status"], one["reason"]) for name, one in domains.items()} == {
        WEB: ("failed", "hook before-freeze.d/10-x failed with exit code 3"),
        DATABASE: ("failed", "hook before-freeze.d/10-x took more than 10 s and was ended"),
        ARCHIVE: ("saved", ""),
    }
    assert [domains[name]["frozen_seconds"] for name in (WEB, DATABASE)] == [0, 0]
    assert {one["hostname"] for one in node.snapshots()} == {ARCHIVE}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_hook_ends_with_its_worker_and_what_it_began_is_undone(
    node: Node, files: HookFiles, lab: Lab, number: signal.Signals
) -> None:
    pids = node.directory / "pids"
    files.add("before-freeze.d/10-x", f"sleep 1000 & echo $$ $! >{pids}; wait")
    files.add("after-thaw.d/10-x")
    with node.started("backup", WEB) as process:
        wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"), 60, "the hook runs")
        (worker,) = node.workers()
        os.kill(worker if number == signal.SIGKILL else process.pid, number)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == (3 if number == signal.SIGKILL else 143), output
    assert not [pid for pid in pids.read_text().split() if runs(int(pid))]

    def clean() -> bool:
        return node.run("cleanup").returncode == 0 and not left_behind(lab, node)

    wait_until(clean, 60, "the lock of a worker that was killed has expired, and is removed")
    assert files.ran == ["before-freeze.d/10-x", "after-thaw.d/10-x"]


def test_res_has_a_hook_that_lets_the_guest_do_its_own_step(node: Node, files: HookFiles, lab: Lab) -> None:
    for phase in ("before-freeze", "after-thaw"):
        (files.directory / f"{phase}.d").mkdir(mode=0o700)
        (files.directory / f"{phase}.d/in-guest").symlink_to(IN_GUEST)
    step = "/etc/virt-rbd-backup/before-freeze"
    make = f"printf '#!/bin/sh\\necho $0 >&2; exit 7\\n' >{step}; chmod 700 {step}"
    done_in_guest(lab, WEB, f"mkdir -p /etc/virt-rbd-backup; {make}")
    try:
        done = node.run("backup", WEB, DATABASE, ARCHIVE)
    finally:
        done_in_guest(lab, WEB, "rm -r /etc/virt-rbd-backup")
    domains = node.report()["domains"]
    assert domains[WEB]["reason"] == f"hook before-freeze.d/in-guest failed with exit code 7: {step}"
    assert [domains[name]["status"] for name in (DATABASE, ARCHIVE)] == ["saved", "saved"], done.stderr
    assert f"{DATABASE}: hook before-freeze.d/in-guest: no guest agent answers" in done.stderr
    assert node.run("backup", WEB).returncode == 0
