"""The faults of a round: each waits for its moment, happens, and is undone."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress

from tests.chaos import of_cluster, of_domains, of_processes, of_repository
from tests.chaos.plan import QUIESCED, START, Fault
from tests.chaos.processes import ours
from tests.chaos.world import Happening, Span, World
from tests.lab import LabError

HAPPENINGS: Mapping[str, Happening] = {
    **of_processes.HAPPENINGS,
    **of_cluster.HAPPENINGS,
    **of_domains.HAPPENINGS,
    **of_repository.HAPPENINGS,
}
POLL = 0.002  # seconds between two looks for a moment


def happen(world: World, fault: Fault, began: float) -> None:
    """Wait for the fault's moment, let it happen, and undo it; note when that was.

    A round whose commands end before that moment goes on without.
    """
    if not _moment_comes(world, fault, began):
        world.spans.append(Span(began, began, fault, note="did not come: "))
        return
    started = time.monotonic()
    excuses: tuple[str, ...] = ()
    note = ""
    try:
        with HAPPENINGS[fault.kind](world, fault) as excuses:
            if fault.seconds:
                time.sleep(fault.seconds)
    except (LabError, OSError) as error:  # another fault is in its way, such as libvirtd's
        note = f"failed ({error}): "
    world.spans.append(Span(started, time.monotonic(), fault, excuses, note))


def _moment_comes(world: World, fault: Fault, began: float) -> bool:
    """Wait for it; tell whether it has come before the commands ended."""
    if fault.moment == START:
        return not world.over.wait(max(0, began + fault.delay - time.monotonic()))
    there = _quiesced if fault.moment == QUIESCED else _streaming
    while not world.over.wait(POLL if fault.moment == QUIESCED else 0.05):
        if there(world):
            return not world.over.wait(fault.delay)
    return False


def _quiesced(world: World) -> bool:
    """Tell whether a guest is recorded as about to be quiesced."""
    for node in world.nodes.values():
        with suppress(FileNotFoundError):
            if any(name.endswith(".json") for name in os.listdir(node.runtime_dir / "held")):
                return True
    return False


def _streaming(world: World) -> bool:
    """Tell whether a worker of ours streams something, as its title says."""
    return any(
        one.role == "worker" and ": streaming" in one.line
        for node in world.nodes.values()
        for one in ours(node.directory)
    )
