"""When nobody was there to thaw a guest: seen while it happens, from each node's processes and records.

A node is unguarded while it has a record of a guest, neither main nor a worker nor the watchdog runs, and a
fault has hit its newest watchdog: one that was not hit must not end as long as there is a record.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tests.chaos.nodes import Node
from tests.chaos.processes import ours
from tests.chaos.world import World

GUARDS = {"main", "worker", "watchdog"}  # of which one has to run to thaw a guest
POLL = 0.1  # seconds


@dataclass(frozen=True)
class Unguarded:
    """From when to when, in time.monotonic(), guests that a node had recorded could not be thawed."""

    node: str
    began: float
    ended: float
    guests: frozenset[str]


class Guards:
    """Watches the guards of all nodes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ended = threading.Event()
        self._open: dict[str, Unguarded] = {}
        self._closed: list[Unguarded] = []
        self._watchdogs: dict[str, set[int]] = {}  # PIDs of the last ones that were seen, by node

    @contextmanager
    def watched(self) -> Iterator[Guards]:
        """Watch them during the block."""
        thread = threading.Thread(target=self._watch, name="guards")
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    @property
    def unguarded(self) -> Sequence[Unguarded]:
        return [*self._closed, *self._open.values()]

    def excuses(self, guest: str) -> list[tuple[float, float]]:
        """Give the times in which nobody could thaw this guest."""
        return [(one.began, one.ended) for one in self.unguarded if guest in one.guests]

    def missed(self, node: Node) -> bool:
        """Tell whether the node was unguarded at any time."""
        return any(one.node == node.name for one in self.unguarded)

    def _watch(self) -> None:
        while not self._ended.wait(POLL):
            for node in self._world.nodes.values():
                self._look(node)

    def _look(self, node: Node) -> None:
        guests = self._recorded(node)
        if not guests or not self._is_unguarded(node):
            if node.name in self._open:
                self._closed.append(replace(self._open.pop(node.name), ended=time.monotonic()))
            return
        now = time.monotonic()
        one = self._open.get(node.name) or Unguarded(node.name, now - POLL, now, guests)
        self._open[node.name] = replace(one, ended=now, guests=one.guests | guests)

    def _is_unguarded(self, node: Node) -> bool:
        guards = [one for one in ours(node.directory) if one.role in GUARDS]
        if watchdogs := {one.pid for one in guards if one.role == "watchdog"}:
            self._watchdogs[node.name] = watchdogs
        hit = {pid for name, pid in self._world.watchdogs_hit if name == node.name}
        excused = bool(hit) and self._watchdogs.get(node.name, hit) <= hit
        return excused and all(one.stopped for one in guards)

    def _recorded(self, node: Node) -> frozenset[str]:
        uuids = {record.stem for record in node.records()}
        return frozenset(name for name, uuid in self._world.uuids.items() if uuid in uuids)
