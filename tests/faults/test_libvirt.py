"""Faults of libvirt."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.faults.provoke import freeze_status, frozen, held, held_for, stopped, streaming
from tests.integration.node import SLOW, Node, wait_until
from tests.lab import Lab, RbdDisk
from tests.lab.sample import ARCHIVE, DATABASE, WEB


def test_without_libvirt_nothing_is_done_and_the_report_says_so(node: Node, lab: Lab) -> None:
    lab.stop_libvirtd()
    try:
        done = node.run("backup")
    finally:
        lab.start_libvirtd()
    assert done.returncode == 1
    assert "cannot connect to libvirt at qemu:///system" in done.stderr
    report = node.report()
    assert (report["exit_code"], report["domains"]) == (1, {})


def test_a_libvirt_that_hangs_ends_the_run_in_good_time(node: Node, lab: Lab) -> None:
    with stopped(lab.libvirtd_pid):
        done = node.run("backup", ARCHIVE, LIBVIRT_TIMEOUT=2)
    assert done.returncode == 1
    assert "no answer within 2 s" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_libvirt_that_is_restarted_while_a_guest_is_frozen_costs_nothing(node: Node, lab: Lab) -> None:
    with frozen(node, lab, WEB, FREEZE_TIMEOUT=90) as (_, worker):
        lab.stop_libvirtd()
        lab.start_libvirtd()
        os.kill(worker, signal.SIGCONT)
    saved = node.report()["domains"][WEB]
    assert (saved["status"], saved["consistency"]) == ("saved", "filesystem")
    assert freeze_status(lab, WEB) == "thawed"


def test_a_libvirt_that_is_restarted_while_an_image_is_streamed_costs_nothing(
    node: Node, lab: Lab, large: str
) -> None:
    with node.started("backup", large, MAX_READ_RATE=SLOW) as process:
        wait_until(lambda: streaming(node), 60, "the second image is on its way")
        lab.stop_libvirtd()
        lab.start_libvirtd()
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def test_a_domain_that_is_destroyed_and_undefined_while_frozen_is_saved_as_it_was(
    node: Node, lab: Lab, plain: str
) -> None:
    try:
        with frozen(node, lab, plain) as (_, worker):
            lab.destroy_domain(plain)
            lab.undefine_domain(plain)
            os.kill(worker, signal.SIGCONT)
    finally:
        if plain not in lab.virsh("list", "--all", "--name").split():
            lab.define_domain(plain, [RbdDisk("vda", f"vms/{plain}")])
            lab.start_domain(plain, wait_for_agent=True)
    saved = node.report()["domains"][plain]
    # its images may have been written to after the guest had died
    assert (saved["status"], saved["consistency"]) == ("saved", "crash")
    assert b"plain" in node.definition(plain)["domain.xml"]


def test_a_pause_that_was_given_up_is_undone_when_it_happens_after_all(node: Node, lab: Lab) -> None:
    qemu = int(Path(f"/run/libvirt/qemu/{DATABASE}.pid").read_text())
    with stopped(qemu), node.started("backup", DATABASE, FREEZE="never", LIBVIRT_TIMEOUT=5) as process:
        wait_until(lambda: held_for(node) > 7, 60, "libvirt has not paused the domain in time")
        os.kill(qemu, signal.SIGCONT)
        output, _ = process.communicate(timeout=240)
    assert "no answer within 5 s" in output
    wait_until(lambda: lab.virsh("domstate", DATABASE).strip() == "running", 30, "it runs")
    assert not held(node)
