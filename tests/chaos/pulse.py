"""The guests' pulse: when each last recorded a write, and for how long none did."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab import Lab

POLL = 0.05  # seconds


class Pulse:
    """Follows the consoles of guests, on which they print each tick once it is written to all disks."""

    def __init__(self, lab: Lab, names: Sequence[str]) -> None:
        self._consoles = {name: lab.console_log(name) for name in names}
        self._offsets = dict.fromkeys(names, 0)
        self._beats: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
        self._ended = threading.Event()

    @contextmanager
    def followed(self) -> Iterator[Pulse]:
        """Follow them during the block."""
        thread = threading.Thread(target=self._follow, name="pulse")
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def tick(self, name: str) -> int:
        """Give the newest tick."""
        beats = self._beats[name]
        return beats[-1][1] if beats else 0

    def tick_at(self, name: str, moment: float) -> int:
        """Give the newest tick that was printed by a moment of time.monotonic(), 0 for none."""
        return max((tick for time_, tick in [*self._beats[name]] if time_ <= moment), default=0)

    def writes(self, name: str, seconds: float) -> bool:
        """Tell whether the guest writes within so many seconds from now."""
        before, deadline = self.tick(name), time.monotonic() + seconds
        while self.tick(name) == before:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        return True

    def gaps(self, name: str, since: float, until: float, least: float) -> Sequence[tuple[float, float]]:
        """Give the times without a write that took so many seconds at the least."""
        moments = [since, *(moment for moment, _ in [*self._beats[name]] if since < moment < until), until]
        return [(a, b) for a, b in zip(moments, moments[1:]) if b - a >= least]

    def _follow(self) -> None:
        while not self._ended.wait(POLL):
            for name, console in self._consoles.items():
                found = re.findall(rb"lab: tick (\d+)\r?\n", self._new(name, console))
                if found:
                    self._beats[name].append((time.monotonic(), int(found[-1])))

    def _new(self, name: str, console: Path) -> bytes:
        """Give what was printed since, in whole lines."""
        try:
            with console.open("rb") as file:
                if file.seek(0, 2) < self._offsets[name]:  # the domain was started anew
                    self._offsets[name] = 0
                file.seek(self._offsets[name])
                whole = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return b""
        self._offsets[name] += len(whole[0]) + len(whole[1])
        return whole[0] + whole[1]
