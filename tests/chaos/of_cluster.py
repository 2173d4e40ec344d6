"""Faults of Ceph's and libvirt's daemons."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Callable

from tests.chaos.guests import RUNNING
from tests.chaos.plan import Fault
from tests.chaos.processes import alive, send
from tests.chaos.world import Happening, World, wait_for
from tests.lab import Lab, LabError

RESTART_LIMIT = 30  # seconds


@contextmanager
def _stopped(pid: Callable[[Lab], int], world: World, _fault: Fault) -> Iterator[tuple[str, ...]]:
    """Have a daemon not run during the block. Any guest may have to wait for it."""
    number = pid(world.lab)
    send(number, signal.SIGSTOP)
    try:
        yield tuple(RUNNING)
    finally:
        send(number, signal.SIGCONT)


@contextmanager
def _osd_killed(world: World, _fault: Fault) -> Iterator[tuple[str, ...]]:
    osd = world.lab.cluster.osd
    pid = world.lab.osd_pid
    send(pid, signal.SIGKILL)
    try:
        yield tuple(RUNNING)
    finally:
        wait_for(lambda: not alive(pid), 10)
        osd.start()


@contextmanager
def _libvirtd_restarted(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    pid = world.lab.libvirtd_pid
    send(pid, signal.SIGTERM)
    try:
        yield tuple(RUNNING)
    finally:
        if not wait_for(lambda: not alive(pid), 10):
            send(pid, signal.SIGKILL)  # it waits for a call that hangs
            wait_for(lambda: not alive(pid), 10)
        world.lab.start_libvirtd()


def healthy(lab: Lab, seconds: float) -> bool:
    """Tell whether the cluster takes writes in both pools, and libvirt answers, within so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            for pool in ("vms", "ssd"):
                for kind in ("create", "rm"):
                    size = ("--size", "1M") if kind == "create" else ("--no-progress",)
                    lab.rbd(kind, f"{pool}/probe", *size)
            lab.virsh("list")
        except LabError:
            if time.monotonic() > deadline:
                return False
            time.sleep(1)
        else:
            return True


HAPPENINGS: Mapping[str, Happening] = {
    "osd stopped": partial(_stopped, lambda lab: lab.osd_pid),
    "monitor stopped": partial(_stopped, lambda lab: lab.mon_pid),
    "libvirtd stopped": partial(_stopped, lambda lab: lab.libvirtd_pid),
    "osd killed": _osd_killed,
    "libvirtd restarted": _libvirtd_restarted,
}
