"""Faults of our own processes: killed, stopped for a while, asked to end, in any set and order."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from tests.chaos.nodes import Node
from tests.chaos.plan import Fault
from tests.chaos.processes import Process, of_roles, send
from tests.chaos.world import Happening, World


@contextmanager
def _killed(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    _sent(world, fault, signal.SIGKILL)
    yield ()


@contextmanager
def _asked_to_end(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    _sent(world, fault, signal.SIGTERM)
    yield ()


@contextmanager
def _stopped(world: World, fault: Fault) -> Iterator[tuple[str, ...]]:
    hit = _sent(world, fault, signal.SIGSTOP)
    try:
        yield ()
    finally:
        for one in hit:
            send(one.pid, signal.SIGCONT)


def _sent(world: World, fault: Fault, number: signal.Signals) -> Sequence[Process]:
    """Send all processes of the roles, in their order, the signal; give those that were there."""
    hit = []
    for role in fault.target:
        for node in world.nodes.values():
            here = [one for one in _of_role(node, role) if send(one.pid, number)]
            if role == "watchdog" and number != signal.SIGTERM:
                world.watchdogs_hit.update((node.name, one.pid) for one in here)
            hit += here
        time.sleep(fault.gap)
    return hit


def _of_role(node: Node, role: str) -> Sequence[Process]:
    return of_roles(node.directory).get(role, [])


HAPPENINGS: Mapping[str, Happening] = {"SIGKILL": _killed, "SIGSTOP": _stopped, "SIGTERM": _asked_to_end}
