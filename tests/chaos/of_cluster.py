"""Faults of Ceph's and libvirt's daemons."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Callable

import rados

from tests.chaos.guests import RUNNING
from tests.chaos.plan import Fault
from tests.chaos.processes import alive, send
from tests.chaos.world import Happening, World, wait_for
from tests.lab import Lab, LabError
from tests.lab.cluster import PLACEMENT_GROUPS, POOLS

AGAIN_LIMIT = 60  # seconds until guests can write again: it takes an OSD a while to find out what it missed


@contextmanager
def _stopped(pid: Callable[[Lab], int], world: World, _fault: Fault) -> Iterator[tuple[str, ...]]:
    """Have a daemon not run during the block. Any guest may have to wait for it."""
    number = pid(world.lab)
    send(number, signal.SIGSTOP)
    try:
        yield tuple(RUNNING)
    finally:
        send(number, signal.SIGCONT)
        healthy(world.lab, AGAIN_LIMIT)


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
        healthy(world.lab, AGAIN_LIMIT)


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
    """Tell whether all of the cluster takes writes, and libvirt answers, within so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            _write_everywhere(lab)
            lab.virsh("list")
        except (LabError, rados.Error):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.5)
        else:
            return True


def _write_everywhere(lab: Lab) -> None:
    """Write to so many objects that each placement group most likely has one. Raises rados.Error."""
    limits = {"rados_osd_op_timeout": "5", "rados_mon_op_timeout": "5"}
    with rados.Rados(conffile=str(lab.ceph_conf), conf=limits) as client:
        for pool in POOLS:
            with client.open_ioctx(pool) as opened:
                for number in range(5 * PLACEMENT_GROUPS):
                    opened.write_full(f"probe-{number}", b"")
                    opened.remove_object(f"probe-{number}")


HAPPENINGS: Mapping[str, Happening] = {
    "osd stopped": partial(_stopped, lambda lab: lab.osd_pid),
    "monitor stopped": partial(_stopped, lambda lab: lab.mon_pid),
    "libvirtd stopped": partial(_stopped, lambda lab: lab.libvirtd_pid),
    "osd killed": _osd_killed,
    "libvirtd restarted": _libvirtd_restarted,
}
