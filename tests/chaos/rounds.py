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
from tests.chaos.tally import Tally
from tests.chaos.violation import LabBroken, Violation
from tests.chaos.world import World, built
from tests.lab import LabError


def rounds(options: argparse.Namespace, scratch: Path, logs: Path) -> Tally:
    """Do so many that count."""
    tally = Tally(options.rounds, options.first)
    while tally.goes_on:
        first = tally.number
        try:
            with built(scratch / f"world-{first}", shared=(options.seed + first) % 2 == 0) as world:
                _in_world(world, options.seed, tally, scratch, logs)
        except LabError as error:
            print(f"the lab has broken: {error}", flush=True)
            if tally.number == first:
                tally.count("broken")
    return tally


def _in_world(world: World, seed: int, tally: Tally, scratch: Path, logs: Path) -> None:
    """Do rounds until enough count, or the next one cannot begin here."""
    sound = True
    while tally.goes_on and sound:
        outcome = _one(world, seed, tally.number, scratch, logs)
        tally.count(outcome)
        sound = outcome == "passed" or (outcome == "failed" and _sound(world))


def _sound(world: World) -> bool:
    """Tell whether the next round can begin in a world in which one has failed."""
    try:
        return not [*leftovers.violations(world)] and all(world.pulse.writes(name, 10) for name in RUNNING)
    except LabError:
        return False


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
