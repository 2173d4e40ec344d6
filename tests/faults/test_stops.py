"""A request to stop ends every command in good order within seconds, whatever hangs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.provoke import HeldBackRestic, deletions_held_back, lines_until, stopped
from tests.integration.left_behind import left_behind
from tests.integration.node import Node, snapshot_names, wait_until
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, WEB

LIMIT = 15  # seconds, of which a busy machine may need some itself; CEPH_TIMEOUT is 20


def has_socket(process: subprocess.Popen[str]) -> bool:
    """Tell whether it has connected, which is possible with what is stopped, too."""
    directory = Path(f"/proc/{process.pid}/fd")
    for file in directory.iterdir():
        with suppress(FileNotFoundError):  # it has been closed meanwhile
            if os.readlink(file).startswith("socket:"):
                return True
    return False


def ended(process: subprocess.Popen[str]) -> str:
    """Ask it to stop, and give what it has written when it has ended in time."""
    process.terminate()
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() < began + LIMIT
    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert "Fatal" not in output
    return output


@pytest.mark.parametrize("words", ["backup", "cleanup", "check", "list"])
def test_a_libvirt_that_hangs(words: str, node: Node, lab: Lab) -> None:
    with stopped(lab.libvirtd_pid), node.started(words) as process:
        wait_until(lambda: has_socket(process), 30, "it has connected to libvirt")
        assert "interrupted" in ended(process)


def test_an_osd_that_hangs_during_cleanup(node: Node, lab: Lab) -> None:
    with stopped(lab.osd_pid), node.started("cleanup", PROGRESS_INTERVAL=1) as process:
        lines_until(process, " domains checked for leftovers")
        assert "interrupted" in ended(process)
    assert node.run("cleanup").returncode == 0


def test_an_osd_that_hangs_during_check(node: Node, lab: Lab) -> None:
    with stopped(lab.osd_pid), node.started("check", FREEZE="never") as process:
        lines_until(process, f"domain {WEB}: ")
        assert "interrupted" in ended(process)


RESTORE = ("restore", ARCHIVE, "--to-pool", "ssd")


@pytest.fixture
def saved(node: Node, lab: Lab) -> Iterator[Node]:
    """A node that has saved a domain; what is restored of it, or left, is removed."""
    node.constants["DRILL_POOL"] = "ssd"
    assert node.run("backup", ARCHIVE).returncode == 0
    before = set(lab.rbd("ls", "ssd").decode().split())
    yield node
    # the cluster takes a killed client's watch for alive for half a minute
    wait_until(lambda: node.run(*RESTORE, "--force").returncode == 0, 60, "leftovers are removed")
    wait_until(lambda: node.run("drill", ARCHIVE).returncode == 0, 60, "leftovers are removed")
    found = set(lab.rbd("ls", "ssd").decode().split()) - before
    assert not [name for name in found if "restoring" in name]
    for name in found:
        lab.rbd("rm", "--no-progress", f"ssd/{name}")


@pytest.mark.parametrize("words", [RESTORE, ("drill", ARCHIVE)], ids=["restore", "drill"])
def test_an_osd_that_hangs_during_a_restore(words: tuple[str, ...], saved: Node, lab: Lab) -> None:
    with stopped(lab.osd_pid), saved.started(*words) as process:
        lines_until(process, "offline" if "restore" in words else "drill of the restore point")
        time.sleep(6)  # it asks for the image
        output = ended(process)
    assert "interrupted" in output
    assert "the cluster does not answer: " in output


@pytest.mark.parametrize("words", [RESTORE, ("drill", ARCHIVE)], ids=["restore", "drill"])
def test_an_osd_that_hangs_while_images_are_written(words: tuple[str, ...], saved: Node, lab: Lab) -> None:
    restic = HeldBackRestic(saved, ".img")
    with saved.started(*words, RESTIC_BINARY=restic.path) as process:
        restic.reached()
        with stopped(lab.osd_pid):
            restic.let_go()
            time.sleep(2)  # it writes
            assert "interrupted" in ended(process)


def test_cleanup_in_the_middle_of_a_removal_gives_its_lock_back(node: Node, lab: Lab) -> None:
    name = f"virt-rbd-backup.{lab.virsh('domuuid', ARCHIVE).strip()}.20240101T000000Z-dead"
    lab.rbd("snap", "create", "--no-progress", f"vms/{ARCHIVE}@{name}")
    with deletions_held_back(node), node.started("cleanup", SNAPSHOT_DELETES=1) as process:
        wait_until(lambda: locks(lab, node), 60, "the domain is locked")
        assert "interrupted" in ended(process)
    assert locks(lab, node) == []
    assert node.run("cleanup").returncode == 0
    assert snapshot_names(lab, f"vms/{ARCHIVE}") == []


def locks(lab: Lab, node: Node) -> list[str]:
    return [one for one in left_behind(lab, node) if ".lock." in one]
