"""Owners of an image's lock that keep snapshots from being made: messages name them and their addresses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.provoke import held_before_freeze
from tests.integration.node import Node, wait_until
from tests.lab import Lab
from tests.lab.sample import ARCHIVE

SPEC = f"vms/{ARCHIVE}"
OWNER = """
import rados, rbd, sys, time
cluster = rados.Rados(conffile=sys.argv[1])
cluster.connect()
image = rbd.Image(cluster.open_ioctx("vms"), sys.argv[2])
image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
print(list(image.watchers_list())[0]["addr"], flush=True)
time.sleep(600)
"""


@contextmanager
def owned(lab: Lab) -> Iterator[tuple[int, str]]:
    """Have a process own the image's lock, and yield its pid and address."""
    command = ["/usr/bin/python3", "-c", OWNER, str(lab.ceph_conf), ARCHIVE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.pid, process.stdout.readline().strip()
        finally:
            process.kill()
    wait_until(lambda: b"watcher=" not in lab.rbd("status", SPEC), 60, "Ceph has forgotten the owner")


def test_a_lock_by_hand_fails_its_domain_and_check_with_its_owner(node: Node, lab: Lab) -> None:
    lab.rbd("lock", "add", SPEC, "theirs")
    listed = lab.rbd("lock", "ls", SPEC).decode()
    ((client, address),) = re.findall(r"(client\.\d+)\s+theirs\s+(\S+)", listed)
    try:
        done = node.run("backup", ARCHIVE)
        checked = node.run("check")
    finally:
        lab.rbd("lock", "rm", SPEC, "theirs", client)
    reason = f"image {SPEC} is locked by {client} at {address} (theirs)"
    assert (done.returncode, checked.returncode) == (3, 1)
    assert node.report()["domains"][ARCHIVE]["reason"] == reason
    assert reason in checked.stdout
    assert f"rbd lock rm {SPEC} 'theirs' {client}" in done.stderr


def test_an_owner_that_is_stopped_is_named(node: Node, lab: Lab) -> None:
    with owned(lab) as (pid, address):
        assert node.run("backup", ARCHIVE).returncode == 0, "a living owner makes the snapshot"
        # half of WATCH_TIMEOUT
        with held_before_freeze(node, ARCHIVE, RETRY_FOR=0, CEPH_TIMEOUT=6) as (run, go_on):
            os.kill(pid, signal.SIGSTOP)
            go_on()
            output, _ = run.communicate(timeout=300)
    assert re.search(rf"locked by client\.\d+ at {address}\) were not made within", output)


def test_an_owner_that_died_is_named_by_check_and_a_user_who_may_not_replace_it_in_the_failure(
    node: Node, lab: Lab
) -> None:
    user = f"client.{lab.ceph_user}"
    usual = ("mon", "profile rbd", "osd", "profile rbd pool=vms, profile rbd pool=ssd")
    with owned(lab) as (_, address):
        pass
    lab.ceph("auth", "caps", user, "mon", "allow r", "osd", "allow *")
    try:
        checked = node.run("check").stdout
        done = node.run("backup", ARCHIVE, FREEZE_TIMEOUT=6)
    finally:
        lab.ceph("auth", "caps", user, *usual)
    assert re.search(rf"its lock is still client\.\d+ at {address}'s, which is dead", checked)
    assert done.returncode == 3
    assert address in done.stderr
    assert "profile rbd" in done.stderr
    assert node.run("backup", ARCHIVE).returncode == 0
