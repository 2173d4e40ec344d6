"""An instant restore whose parts are killed is continued by the same command, and no write is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Callable

import libvirt
import pytest

from tests.faults.provoke import HeldBackRestic
from tests.integration.instant_guest import NAME, RestoredGuest, images_dir, lost_guest, qemus
from tests.integration.node import Node, wait_until
from tests.lab import Lab, LabError

COMMAND = ("restore", NAME, "--instant")


@pytest.fixture
def guest(node: Node, lab: Lab, tmp_path: Path) -> Iterator[RestoredGuest]:
    node.constants["DRILL_DIR"] = str(images_dir(tmp_path))
    with lost_guest(node, lab) as guest:
        yield guest


def is_recorded(guest: RestoredGuest) -> bool:
    return bool(guest.records())


def writes(guest: RestoredGuest) -> bool:
    return guest.ticks_since(guest.saved_at + 5)


def copies(guest: RestoredGuest) -> bool:
    return "<mirror" in guest.lab.virsh("dumpxml", NAME)


def is_paused_for_the_pivot(guest: RestoredGuest) -> bool:
    """Ask again and again once disks are copied: it is paused for a tenth of a second."""
    if not copies(guest):
        return False
    with closing(libvirt.open(guest.lab.libvirt_uri)) as connection:
        domain = connection.lookupByName(NAME)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if domain.state() == [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]:
                return True
            time.sleep(0.002)
    return False


def is_moved(guest: RestoredGuest) -> bool:
    return guest.sources()[0] == "vms/instant01-a"


MOMENTS: dict[str, Callable[[RestoredGuest], object]] = {
    "before the start": is_recorded,
    "while images are filled": writes,
    "while disks are copied": copies,
    "at the pivot": is_paused_for_the_pivot,
    "once it is moved": is_moved,
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("with_qemu", [False, True], ids=["our process", "and QEMU"])
def test_killed_at_any_moment_the_same_command_continues(
    node: Node, guest: RestoredGuest, moment: str, with_qemu: bool
) -> None:
    restic = HeldBackRestic(node, "vdb.img")
    if moment != "while images are filled":
        restic.let_go()
    with node.started(*COMMAND, RESTIC_BINARY=restic.path) as process:
        wait_until(lambda: reached(guest, moment), 120, moment)
        process.kill()
        process.wait()
    if with_qemu:
        for qemu in qemus(NAME):
            qemu.kill()
    restic.let_go()
    done = node.run(*COMMAND)
    assert done.returncode == 0, done.stderr
    guest.require_on_images()
    guest.require_no_gap()


def reached(guest: RestoredGuest, moment: str) -> bool:
    try:
        return bool(MOMENTS[moment](guest))
    except Exception:  # not defined yet
        return False


def test_a_lost_server_pauses_the_guest_and_it_runs_again_by_itself(node: Node, guest: RestoredGuest) -> None:
    restic = HeldBackRestic(node, "vdb.img")
    with node.started(*COMMAND, RESTIC_BINARY=restic.path) as process:
        wait_until(lambda: reached(guest, "while images are filled"), 120, "the guest writes")
        read_all_soon(guest)
        for pid in node.processes("restic mount"):
            os.kill(pid, signal.SIGKILL)
        time.sleep(1)
        wait_until(lambda: node.processes("restic mount"), 60, "the restore point is opened again")
        restic.let_go()
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "the restore point is opened again" in output
    guest.require_on_images()
    guest.require_no_gap()


# The pause: a guest that reads by itself as soon as the server is gone could not be told any more.
READ_ALL = json.dumps(
    {
        "execute": "guest-exec",
        "arguments": {"path": "/bin/sh", "arg": ["-c", "sleep 2; cat /dev/vda /dev/vdb >/dev/null"]},
    }
)


def read_all_soon(guest: RestoredGuest) -> int:
    """Have the guest read its disks in a moment, and give the pid there."""
    wait_until(lambda: guest.lab.hypervisor.agent_answers(NAME), 60, "its agent answers")
    pid: int = json.loads(guest.lab.virsh("qemu-agent-command", NAME, READ_ALL))["return"]["pid"]
    return pid


def test_a_guest_that_reads_without_the_server_waits_and_gets_no_error(
    node: Node, guest: RestoredGuest
) -> None:
    restic = HeldBackRestic(node, "vdb.img")
    with node.started(*COMMAND, RESTIC_BINARY=restic.path) as process:
        wait_until(lambda: reached(guest, "while images are filled"), 120, "the guest writes")
        reading = read_all_soon(guest)
        process.kill()
        process.wait()
    paused = "paused (I/O error)"
    wait_until(lambda: paused in guest.lab.virsh("domstate", "--reason", NAME), 30, "it is paused")
    time.sleep(2)
    assert paused in guest.lab.virsh("domstate", "--reason", NAME), "nobody resumes it meanwhile"
    restic.let_go()
    done = node.run(*COMMAND)
    assert done.returncode == 0, done.stderr
    assert "a read or write of the guest failed: it is paused until that succeeds" in done.stderr
    guest.require_on_images()
    ask = json.dumps({"execute": "guest-exec-status", "arguments": {"pid": reading}})
    answers: list[dict[str, object]] = []

    def has_read() -> bool:
        with suppress(LabError):  # the agent is too slow
            answers.append(json.loads(guest.lab.virsh("qemu-agent-command", NAME, ask))["return"])
        return bool(answers and answers[-1]["exited"])

    wait_until(has_read, 120, "it has read all")
    assert answers[-1]["exitcode"] == 0, "its reads have succeeded"
    guest.require_no_gap()


def test_a_qemu_that_is_killed_is_started_again_while_the_command_runs(
    node: Node, guest: RestoredGuest
) -> None:
    restic = HeldBackRestic(node, "vdb.img")
    with node.started(*COMMAND, RESTIC_BINARY=restic.path) as process:
        wait_until(lambda: reached(guest, "while images are filled"), 120, "the guest writes")
        for qemu in qemus(NAME):
            qemu.kill()
        wait_until(lambda: guest.state == "running", 60, "it runs again")
        restic.let_go()
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "the guest's QEMU has ended by accident" in output
    guest.require_on_images()
    guest.require_no_gap()
