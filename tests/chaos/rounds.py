"""Rounds one after another, in worlds that are rebuilt when they are broken."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import evidence, leftovers
from tests.chaos.guests import RUNNING
from tests.chaos.plan import Plan, drawn
from tests.chaos.round import Round
from tests.chaos.violation import LabBroken, Violation
from tests.chaos.world import World, built
from tests.lab import LabError


def rounds(options: argparse.Namespace, scratch: Path, logs: Path) -> tuple[int, int, int]:
    """Do them; tell how many passed, how many failed, and in how many the lab itself broke."""
    counts = {"passed": 0, "failed": 0, "broken": 0}
    waiting = list(range(options.first, options.first + options.rounds))
    while waiting:
        with built(scratch / f"world-{waiting[0]}", shared=(options.seed + waiting[0]) % 2 == 0) as world:
            sound = True
            while waiting and sound:
                outcome = _one(world, options.seed, waiting.pop(0), scratch, logs)
                counts[outcome] += 1
                sound = outcome == "passed" or (outcome == "failed" and _sound(world))
    return counts["passed"], counts["failed"], counts["broken"]


def _sound(world: World) -> bool:
    """Tell whether the next round can begin in a world in which one has failed."""
    return not [*leftovers.violations(world)] and all(world.pulse.writes(name, 10) for name in RUNNING)


def _one(world: World, seed: int, number: int, scratch: Path, logs: Path) -> str:
    plan, began = drawn(seed, number), time.monotonic()
    directory = scratch / f"seed-{seed}-round-{number}"
    this = Round(world, plan, directory)
    try:
        found = this.violations()
        outcome = "failed" if found else "passed"
    except (LabBroken, LabError) as error:
        found, outcome = [Violation("the lab itself", str(error))], "broken"
    codes = ", ".join(map(str, this.commands))
    print(f"round {number}: {outcome} in {time.monotonic() - began:.0f} s: {codes}", flush=True)
    if found:
        _tell(world, plan, found, began, evidence.kept(world, directory, began, found, logs), seed, number)
    return outcome


def _tell(
    world: World, plan: Plan, found: Sequence[Violation], began: float, place: Path, seed: int, number: int
) -> None:
    for one in found:
        print(f"  {one}")
    print("  plan:", *str(plan).splitlines(), sep="\n    ")
    print("  faults:", *evidence.faults(world, began).splitlines(), sep="\n    ")
    print(f"  logs: {place}; again: tests/chaos/run --seed {seed} --first {number} --rounds 1", flush=True)
