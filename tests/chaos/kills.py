"""Kills within the quiesced moment: any of our processes, in any order, in the first attempt and in a retry.

Where one of main, worker and watchdog survives, the guest has to write again within seconds, by itself; where
main and worker both do, the backup goes on, and has FREEZE_TIMEOUT for it. Where nobody does, it has to once
`cleanup` was started, as systemd does.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import rados

from tests.chaos import evidence
from tests.chaos.guests import SOLO
from tests.chaos.nodes import FREEZE_TIMEOUT, LOCK_DURATION, Node, Running
from tests.chaos.plan import Order
from tests.chaos.processes import of_roles, ours, send
from tests.chaos.tally import Tally
from tests.chaos.violation import Violation
from tests.chaos.world import World, built, wait_for
from tests.lab import LabError

GUARDS = ("main", "worker", "watchdog")
QUIESCED = 1.0  # seconds that a guest is quiesced at the most, on most days; often it is less
BOUND = 5.0  # seconds until the guest writes, after the last kill
RECORD_LIMIT = 40  # seconds until a guest is recorded
END_LIMIT = 60


@dataclass(frozen=True)
class Kill:
    """What is drawn for one: the moment after the record, whom in which order, and in which attempt.

    With SIGSTOP it is the worker alone, and for longer than the guest may be frozen.
    """

    delay: float
    roles: tuple[str, ...]
    gap: float
    retry: bool
    signal: signal.Signals = signal.SIGKILL

    @classmethod
    def drawn(cls, seed: int, number: int) -> Kill:
        rng = random.Random(f"{seed}/kill {number}")
        delay, gap, retry = QUIESCED * rng.random() ** 2.5, rng.uniform(0, 0.05), rng.random() < 0.4
        if rng.random() < 0.1:
            return cls(delay, ("worker",), 0, retry, signal.SIGSTOP)
        return cls(delay, tuple(rng.sample(GUARDS, rng.choice((1, 1, 2, 2, 2, 2, 3)))), gap, retry)

    @property
    def bound(self) -> float:
        goes_on = self.signal is signal.SIGSTOP or self.roles == ("watchdog",)
        return BOUND + (FREEZE_TIMEOUT if goes_on else 0)

    def __str__(self) -> str:
        attempt = "second attempt" if self.retry else "first attempt"
        whom = ", ".join(self.roles)
        gap = f"{1000 * self.gap:.0f} ms apart"
        return f"{self.signal.name} of {whom}, record + {self.delay:.3f} s, {gap}, {attempt}"


@dataclass
class _Try:
    """One kill in a world."""

    world: World
    kill: Kill
    base: Path
    met: bool = False  # whether the record was still there with the first of the signals
    hit: list[int] = field(default_factory=list)

    def violations(self) -> Iterator[Violation]:
        """Start a backup, kill, and wait for the guest's writes; then have nothing left for the next one."""
        node = self.world.nodes["node-a"]
        order = Order(node.name, ("backup", SOLO.name), 0, {"OUTPUT": "restic", "WORKERS": 1})
        with ExitStack() as stack:
            release = stack.enter_context(_other_run(self.world)) if self.kill.retry else None
            running = node.start(order, self.base)
            if release:
                wait_for(lambda: "another run" in running.words or not _lives(running), RECORD_LIMIT)
                release.close()
            if wait_for(lambda: _recorded(node) or not _lives(running), RECORD_LIMIT, 0.002):
                yield from self._killed(node)
            for pid in self.hit:
                send(pid, signal.SIGCONT)
            yield from self._ended(node, running)

    def _killed(self, node: Node) -> Iterator[Violation]:
        roles = {role: [one.pid for one in found] for role, found in of_roles(node.directory).items()}
        time.sleep(self.kill.delay)
        self.met = _recorded(node)
        for role in self.kill.roles:
            self.hit += [pid for pid in roles.get(role, []) if send(pid, self.kill.signal)]
            time.sleep(self.kill.gap)
        if len(self.kill.roles) == len(GUARDS):
            node.cleanup(self.base.with_name(f"{self.base.name}-first"))
        if not self.world.pulse.writes(SOLO.name, self.kill.bound):
            records = [record.name for record in node.records()]
            there = ", ".join(map(str, ours(node.directory)))
            text = f"it does not write within {self.kill.bound:.0f} s; records: {records}; processes: {there}"
            yield Violation("no guest is left frozen", text)

    def _ended(self, node: Node, running: Running) -> Iterator[Violation]:
        """Wait for the end of all, then tidy up as the unit would, and let the lock expire."""
        running.wait(END_LIMIT)
        if not wait_for(lambda: not ours(node.directory), END_LIMIT):
            yield Violation("no process outlives its command", ", ".join(map(str, ours(node.directory))))
            node.kill_all()
            running.wait(10)
        cleanup = node.cleanup(self.base.with_name(f"{self.base.name}-post"))
        cleanup.wait(END_LIMIT)
        if node.records():
            yield Violation("no record stays", f"{[one.name for one in node.records()]} after {cleanup}")
        _remove_lock(self.world)


def _recorded(node: Node) -> bool:
    try:
        return any(name.endswith(".json") for name in os.listdir(node.runtime_dir / "held"))
    except FileNotFoundError:
        return False


def _lives(running: Running) -> bool:
    return running.process.poll() is None


@contextmanager
def _other_run(world: World) -> Iterator[ExitStack]:
    """Have another client hold the domain's lock, until what is given is closed."""
    with _pool(world) as pool, ExitStack() as held:
        name = _lock_name(world)
        pool.lock_exclusive(name, "virt-rbd-backup", "chaos", "chaos", LOCK_DURATION, 0)
        held.callback(pool.remove_object, name)
        yield held


def _remove_lock(world: World) -> None:
    """Spare us the time until a dead run's lock expires; the next run removes its snapshots."""
    with _pool(world) as pool:
        try:
            pool.remove_object(_lock_name(world))
        except rados.ObjectNotFound:
            return


def _lock_name(world: World) -> str:
    return f"virt-rbd-backup.lock.{world.uuids[SOLO.name]}"


@contextmanager
def _pool(world: World) -> Iterator[rados.Ioctx]:
    with rados.Rados(conffile=str(world.lab.ceph_conf)) as cluster, cluster.open_ioctx("vms") as pool:
        yield pool


def kills(options: argparse.Namespace, scratch: Path, logs: Path) -> Tally:
    """Do so many that count: those that do not come too late."""
    tally = Tally(options.kills, options.first)
    while tally.goes_on:
        first = tally.number
        try:
            with built(scratch / f"world-{first}", shared=False, guests=[SOLO]) as world:
                sound = True
                while tally.goes_on and sound:
                    _one(world, options.seed, scratch, logs, tally)
                    sound = world.pulse.writes(SOLO.name, BOUND) and not _recorded(world.nodes["node-a"])
        except (LabError, rados.Error) as error:
            print(f"the lab has broken: {error}", flush=True)
            if tally.number == first:
                tally.count("broken")
    return tally


def _one(world: World, seed: int, scratch: Path, logs: Path, tally: Tally) -> None:
    """Do the next one, and count it."""
    number = tally.number
    began = time.monotonic()
    directory = scratch / f"seed-{seed}-kill-{number}"
    directory.mkdir(exist_ok=True)  # the lab may have broken at this kill before
    world.spans.clear()
    this = _Try(world, Kill.drawn(seed, number), directory / "backup")
    found: Sequence[Violation] = list(this.violations())
    outcome = "failed" if found else "passed" if this.met else "came too late"
    tally.count(outcome)
    print(f"kill {number}: {outcome} in {time.monotonic() - began:.0f} s: {this.kill}", flush=True)
    if found:
        place = evidence.kept(world, directory, began, found, logs)
        print(*(f"  {one}" for one in found), f"  logs: {place}", sep="\n", flush=True)
