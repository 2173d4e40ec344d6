"""A night of many nodes on paper: what their backups ask of the repository and of the monitors.

python3 -m tests.bench.many_nodes --nodes 100 --domains 20 --seconds 60

Nothing is measured here: runs are simulated by the rules of the program, with the counts of calls that tests
and strace have shown. A part of the domains is defined on all nodes, as by a cluster manager.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SPREAD = 1800.0  # seconds within which the timers start the nodes (RandomizedDelaySec)
WORKERS = 3
LISTING = 1.0  # seconds of a restic that lists the restore points, at the beginning and the end of a run
VISIT = 0.5  # seconds for a worker to find that another node has saved, or is saving, the domain
LOCK_READS = 2  # how often each restic reads the lock of each other one (strace, restic 0.14)
SNAPSHOT_CHANGES = 2  # of the OSD map for each image: its snapshot is made, and removed


@dataclass(frozen=True)
class Site:
    """Each node has `domains` of its own, with `disks` images each; `shared` more are defined on all nodes.

    A domain's restic runs for `seconds`.
    """

    nodes: int = 100
    domains: int = 20
    disks: int = 2
    shared: int = 20
    seconds: float = 60.0


@dataclass
class Night:
    """What happened: who saved what, and when each restic ran."""

    saved: Counter[str] = field(default_factory=Counter)
    left_out: set[str] = field(default_factory=set)
    visits: int = 0  # in vain, of domains that another node had saved, or was saving
    calls: list[tuple[float, float]] = field(default_factory=list)  # each restic's beginning and end
    ends: float = 0.0

    @property
    def at_once(self) -> int:
        """The number of restics at the busiest moment."""
        return max(number for _, number in self._running())

    @property
    def lock_reads(self) -> int:
        """How many files of locks all of them read."""
        begins = {begin for begin, _ in self.calls}
        return sum(LOCK_READS * (number - 1) for moment, number in self._running() if moment in begins)

    def _running(self) -> Iterator[tuple[float, int]]:
        """Yield each moment in which a restic begins or ends, and how many run from then on."""
        changes = sorted([(begin, 1) for begin, _ in self.calls] + [(end, -1) for _, end in self.calls])
        number = 0
        for moment, change in changes:
            number += change
            yield moment, number


def simulated(site: Site, seed: int = 0) -> Night:
    """Have each node do its run: WORKERS domains at a time, in the order that all nodes have in common."""
    chance, night = random.Random(seed), Night()
    shared = [f"shared {number}" for number in range(site.shared)]
    locked: dict[str, float] = {}  # until when
    events: list[tuple[float, int, list[str]]] = []  # a worker is free: when, of which node, what is left
    for node in range(site.nodes):
        begins = chance.uniform(0, SPREAD)
        night.calls.append((begins, begins + LISTING))
        waiting = shared + [f"{node}/{number}" for number in range(site.domains)]
        night.left_out.update(waiting)
        events += [(begins + LISTING, node, waiting)] * WORKERS
    heapq.heapify(events)
    ends: dict[int, float] = {}
    while events:
        now, node, waiting = heapq.heappop(events)
        ends[node] = now
        if not waiting:
            continue
        domain = waiting.pop(0)
        if domain in locked:  # held until the domain is saved; from then on MIN_AGE has it skipped
            night.visits += 1
            free = now + VISIT
        else:
            free = locked[domain] = now + site.seconds
            night.saved[domain] += 1
            night.left_out.discard(domain)
            night.calls.append((now, free))
        heapq.heappush(events, (free, node, waiting))
    night.calls += [(end, end + LISTING) for end in ends.values()]
    night.ends = max(end for _, end in night.calls)
    return night


def table(site: Site, night: Night) -> Sequence[tuple[str, str]]:
    """Return what the manual's page on scaling shows, as (what, how many)."""
    saved, hours = sum(night.saved.values()), night.ends / 3600
    reads, changes = night.lock_reads, SNAPSHOT_CHANGES * saved * site.disks
    return [
        ("domains saved", f"{saved}, by {site.nodes} nodes within {night.ends / 60:.0f} minutes"),
        ("calls of restic", f"{len(night.calls)}, {len(night.calls) / hours:.0f} an hour"),
        ("restics at the same time", f"{night.at_once} at the most"),
        (
            "files of locks that they read",
            f"{reads}, {reads / night.ends:.0f} a second",
        ),
        ("visits of domains that another node saves", str(night.visits)),
        ("changes of the OSD map", f"{changes}, {changes / night.ends:.1f} a second"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("nodes", "domains", "disks", "shared"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Site, name))
    parser.add_argument("--seconds", type=float, default=Site.seconds, help="for which each restic runs")
    site = Site(**vars(parser.parse_args()))
    for what, number in table(site, simulated(site)):
        print(f"{what}: {number}")


if __name__ == "__main__":
    main()
