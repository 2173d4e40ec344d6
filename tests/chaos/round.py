"""One round: commands and faults side by side, then the invariants, one after another."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from tests.chaos import agreement, contents, leftovers, restored, stillness
from tests.chaos.faults import happen
from tests.chaos.foreign import Foreign, foreign_locks
from tests.chaos.guards import Guards
from tests.chaos.nodes import LOCK_DURATION, Node, Running
from tests.chaos.of_cluster import healthy
from tests.chaos.of_domains import at_home
from tests.chaos.plan import NODES, Order, Plan
from tests.chaos.processes import ours
from tests.chaos.repository import Repository
from tests.chaos.violation import LabBroken, Violation
from tests.chaos.world import World, wait_for

COMMAND_LIMIT = (
    480  # seconds; a worker that hangs in librbd is ended after four minutes, and others are retried
)
CLEANUP_LIMIT = 120
HEALTHY_LIMIT = 90
ORPHANS_LIMIT = 20  # seconds for a command to end restics that a killed one has left
PROCESSES_LIMIT = 60  # for what outlives its command: the watchdog, and workers that tidy up
FURTHER_LIMIT = 180


class Round:
    """A round in a world. Its files go to a directory of its own."""

    def __init__(self, world: World, plan: Plan, directory: Path) -> None:
        self._world = world
        self._plan = plan
        self._directory = directory
        self._commands: list[Running] = []
        self._lock = threading.Lock()
        self._found: list[Violation] = []
        self._guards = Guards(world)

    def violations(self) -> Sequence[Violation]:
        """Do it all, and give what does not hold. Raises LabBroken."""
        world = self._world
        self._directory.mkdir(parents=True)
        (self._directory / "plan").write_text(f"{self._plan}\n")
        world.over.clear()
        world.spans.clear()
        world.watchdogs_hit.clear()
        began = time.monotonic()
        with foreign_locks(world, self._plan.foreign, NODES[0]) as foreign:
            with self._guards.watched():
                self._happens(began)
                self._settle()
            self._found += stillness.violations(world, self._commands, began, self._guards)
        self._found += self._of_this_round(foreign)
        self._found += self._afterwards()
        self._found += self._of_repositories()
        return [*dict.fromkeys(self._found)]

    def _happens(self, began: float) -> None:
        """Run the commands, with the faults at their moments; nothing of it runs after it."""
        orders = [*enumerate(self._plan.orders)]
        with ThreadPoolExecutor(len(orders) + len(self._plan.faults)) as threads:
            faults = [threads.submit(happen, self._world, fault, began) for fault in self._plan.faults]
            commands = [threads.submit(self._as_systemd, *numbered) for numbered in orders]
            wait(commands)
            self._world.over.set()
        for future in (*commands, *faults):
            future.result()

    def _as_systemd(self, index: int, order: Order) -> None:
        """Run a command, and after a backup what the unit has as ExecStopPost."""
        time.sleep(order.after)
        node = self._world.nodes[order.node]
        base = self._directory / f"{index}-{order.node}-{order.command}"
        self._ended(node.start(order, base), COMMAND_LIMIT)
        if order.command == "backup":
            self._ended(node.cleanup(base.with_name(f"{base.name}-post"), order), CLEANUP_LIMIT)

    def _note(self, running: Running) -> None:
        self._commands.append(running)
        if running.order.command == "backup":
            self._world.backups.append(running)

    def _ended(self, running: Running, limit: float) -> None:
        with self._lock:
            self._note(running)
        if not running.wait(limit):
            self._found.append(Violation("every command ends", f"{running} has not within {limit} s"))
            running.node.kill_all()
            running.wait(10)

    def _settle(self) -> None:
        """Have the lab as it was before: cluster, libvirt, domains. Raises LabBroken."""
        if not healthy(self._world.lab, HEALTHY_LIMIT):
            raise LabBroken("the cluster or libvirt does not recover")
        at_home(self._world)
        for node in self._world.nodes.values():
            self._alone(node)

    def _alone(self, node: Node) -> None:
        """Wait until all of its processes have ended; where nobody was left to thaw a guest, do it now."""
        if not wait_for(lambda: not ours(node.directory), PROCESSES_LIMIT) and self._only_orphans(node):
            self._ended(node.cleanup(self._directory / f"orphans-{node.name}"), CLEANUP_LIMIT)
        if not wait_for(lambda: not ours(node.directory), ORPHANS_LIMIT):
            found = ", ".join(map(str, ours(node.directory)))
            self._found.append(Violation("no process outlives its command", f"{node.name}: {found}"))
            node.kill_all()
        if node.records() and self._guards.missed(node):
            self._ended(node.cleanup(self._directory / f"late-{node.name}"), CLEANUP_LIMIT)

    def _only_orphans(self, node: Node) -> bool:
        """Tell whether all that is left is restics of a killed command, which the next one ends.

        The kernel interrupts the wrapper of each, which may not pass that on; a restic that has lost its
        connection tries again for minutes.
        """
        killed = any(one.code == -signal.SIGKILL for one in self._commands if one.node is node)
        return killed and {one.role for one in ours(node.directory)} <= {"restic", "wrapper", "sftp-server"}

    def _of_this_round(self, foreign: Sequence[Foreign]) -> Iterator[Violation]:
        for one in foreign:
            yield from one.violations()
        world = self._world
        points = {output: holder.points() for output, holder in world.holder_of.items()}
        undefined = {fault.target[0] for fault in self._plan.faults if fault.kind == "domain undefined"}
        for command in self._commands:
            held = points[command.order.constants.get("OUTPUT", "restic")]
            yield from agreement.violations(command, held, undefined, command.node.noted)
            yield from self._restored(command)

    def _restored(self, command: Running) -> Iterator[Violation]:
        """See what a restore has brought back; one that failed has to work now, and tidies up first."""
        if command.order.command not in ("restore", "drill"):
            return
        if command.code != 0:
            again = command.node.start(command.order, command.base.with_name(f"{command.base.name}-again"))
            if not again.wait(FURTHER_LIMIT) or again.code != 0:
                yield Violation("what was killed can be done again", f"{again}: {again.words[-600:]}")
                return
        if command.order.command == "restore":
            yield from restored.violations(self._world, command.order)

    def _afterwards(self) -> Iterator[Violation]:
        """Once the locks have expired, save everything once more, and see what is left."""
        if any(leftovers.lock_objects(self._world, pool) for pool in ("vms", "ssd")):
            ended = max(command.ended for command in self._commands)
            time.sleep(max(0, ended + LOCK_DURATION + 1 - time.monotonic()))
        before = len(self._commands)
        for index, order in enumerate(self._plan.further):  # side by side restic 0.14 often stalls for 43 s
            one = self._further(index, order)
            if not one.wait(FURTHER_LIMIT):
                one.node.kill_all()
                one.wait(10)
            self._note(one)
            if one.code != 0:
                yield Violation("a further run saves everything", f"{one}: {one.words[-600:]}")
        yield from self._now_agree(before)
        yield from leftovers.violations(self._world)

    def _now_agree(self, before: int) -> Iterator[Violation]:
        """See whether the further runs agree, and have removed what was noted as failed by those before."""
        outputs = {order.constants["OUTPUT"] for order in self._plan.further}
        points = {self._place(output): self._world.holder_of[output].points() for output in outputs}
        for further in self._commands[before:]:
            held = points[self._place(further.order.constants["OUTPUT"])]
            yield from agreement.violations(further, held, set(), further.node.noted)
        for command in self._commands[:before]:
            place = self._place(command.order.constants.get("OUTPUT", "restic"))
            if place in points:
                yield from agreement.later(command, points[place])

    def _place(self, output: str) -> Path:
        return self._world.holder_of[output].place

    def _further(self, index: int, order: Order) -> Running:
        base = self._directory / f"further-{index}-{order.node}"
        return self._world.nodes[order.node].start(order, base)

    def _of_repositories(self) -> Iterator[Violation]:
        for holder in self._world.holders:
            yield from contents.violations(self._world, holder)
            if wrong := holder.check():
                yield Violation("what a check of the repository finds", wrong)
            if isinstance(holder, Repository):
                contents.forget_old(self._world, holder)

    @property
    def commands(self) -> Sequence[Running]:
        return self._commands
