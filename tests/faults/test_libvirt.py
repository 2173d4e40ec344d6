"""Faults of libvirt."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.faults.provoke import held, stopped, streaming
from tests.integration.node import SLOW, Node, wait_until
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, DATABASE


def test_a_libvirt_that_hangs_ends_the_run_in_good_time(node: Node, lab: Lab) -> None:
    with stopped(lab.libvirtd_pid):
        done = node.run("backup", ARCHIVE, LIBVIRT_TIMEOUT=2)
    assert done.returncode == 1
    assert "no answer within 2 s" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_libvirt_that_is_restarted_while_an_image_is_streamed_costs_nothing(
    node: Node, lab: Lab, large: str
) -> None:
    with node.started("backup", large, MAX_READ_RATE=8 * SLOW) as process:
        wait_until(lambda: streaming(node), 60, "the second image is on its way")
        lab.stop_libvirtd()
        lab.start_libvirtd()
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output


def test_a_pause_that_was_given_up_is_undone_when_it_happens_after_all(node: Node, lab: Lab) -> None:
    qemu = int(Path(f"/run/libvirt/qemu/{DATABASE}.pid").read_text())
    with stopped(qemu), node.started("backup", DATABASE, FREEZE="never", LIBVIRT_TIMEOUT=2) as process:
        wait_until(lambda: _held_for(node) > 4, 60, "libvirt has not paused the domain in time")
        os.kill(qemu, signal.SIGCONT)
        output, _ = process.communicate(timeout=120)
    assert "no answer within 2 s" in output
    wait_until(lambda: lab.virsh("domstate", DATABASE).strip() == "running", 30, "it runs")
    assert not held(node)


def _held_for(node: Node) -> float:
    """Tell for how many seconds a guest has been noted as held still."""
    return max(
        (time.time() - note.stat().st_mtime for note in node.runtime_dir.glob("held/*.json")), default=0
    )
