"""Whether guests went on writing: during the round, but for what excuses them, and after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from tests.chaos.guards import Guards
from tests.chaos.guests import RUNNING
from tests.chaos.nodes import FREEZE_TIMEOUT, Running
from tests.chaos.violation import Violation
from tests.chaos.world import World, wait_for
from tests.lab import LabError

NO_GUEST = "no guest is left frozen"
SLACK = 7  # seconds on top of FREEZE_TIMEOUT: this machine may be busy
AFTER_FAULT = 12  # seconds until a guest writes again once a fault that excuses it is over
BOOTS = 90  # seconds until a guest that was started writes


def violations(
    world: World, commands: Sequence[Running], began: float, guards: Guards
) -> Iterator[Violation]:
    """Wait for each guest's next write, then see how long it did not write before."""
    for name in RUNNING:
        if world.pulse.writes(
            name, BOOTS if world.happened("domain destroyed", name) else AFTER_FAULT + FREEZE_TIMEOUT
        ):
            continue
        records = [str(record.name) for node in world.nodes.values() for record in node.records()]
        yield Violation(NO_GUEST, f"{name} does not write after all is over; records: {records}")
        _thaw(world, name)
    until = max((one.ended for one in commands), default=began)
    for name in RUNNING:
        for start, end in world.pulse.gaps(name, began, until, FREEZE_TIMEOUT + SLACK):
            longest = unexcused(start, end, [*_excuses(world, name), *guards.excuses(name)])
            if longest >= FREEZE_TIMEOUT + SLACK:
                when = f"{start - began:.1f} s after the round began"
                yield Violation(NO_GUEST, f"{name} did not write for {longest:.1f} s, {when}")


def _excuses(world: World, name: str) -> list[tuple[float, float]]:
    return [(span.began, span.ended + AFTER_FAULT) for span in world.spans if name in span.excuses]


def unexcused(start: float, end: float, excuses: Sequence[tuple[float, float]]) -> float:
    """Give the longest part of a time that nothing excuses."""
    longest, at = 0.0, start
    for began, ended in sorted(excuses):
        longest = max(longest, min(began, end) - at)
        at = max(at, ended)
    return max(longest, end - at)


def _thaw(world: World, name: str) -> None:
    """Have the guest run again by hand, so that the next round can begin."""
    for words in (("domfsthaw", name), ("resume", name)):
        with suppress(LabError):  # it may be the one or the other
            world.lab.virsh(*words)
    wait_for(lambda: world.pulse.writes(name, 1), 20)
