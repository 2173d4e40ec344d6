"""A worker process that does a job, as the pool sees it."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from multiprocessing.context import SpawnProcess

from ..job.job_order import JobOrder
from ..job_result import JobResult, Phase, Timeline
from .worker import SHOW_STACKS, PhaseBegun

SILENCE = 600.0  # seconds without a sign of life after which that is reported
START_LIMIT = 60.0  # seconds for a worker to take its order and begin; usually a quarter of a second


@dataclass
class Worker:
    """A worker process with its job, its result, and the deadline of its next sign of life."""

    order: JobOrder
    process: SpawnProcess
    lane: int
    handed: Future[None]  # when its order has gone into the pipe
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    phases: list[tuple[Phase, datetime]] = field(default_factory=list)
    result: JobResult | None = None
    saved: JobResult | None = None  # once its restore point is complete
    begun: PhaseBegun | None = None
    deadline: float = field(default_factory=lambda: time.monotonic() + START_LIMIT)
    last_sign: float = field(default_factory=time.monotonic)  # when it last gave a sign of life
    silence_reported: bool = False
    hung: bool = False
    stacks_shown: bool = False
    killed: float = math.inf  # when, of time.monotonic()

    def kill(self) -> None:
        """Kill its process. In an uninterruptible sleep it does nothing more, but may not end."""
        self.killed = min(self.killed, time.monotonic())
        self.process.kill()

    def show_stacks(self) -> None:
        """Have it print where each of its threads is, if it still can."""
        self.stacks_shown = True
        if self.process.pid and self.process.exitcode is None:  # so the id is still its own
            with suppress(OSError):
                os.kill(self.process.pid, SHOW_STACKS)

    def record_life(self) -> None:
        """Record a sign of life."""
        self.last_sign, self.silence_reported = time.monotonic(), False
        if not self.hung and not self.result:
            self.deadline = time.monotonic() + self.begun.limit if self.begun else math.inf

    def enters(self, begun: PhaseBegun) -> None:
        """Record that it enters a phase."""
        self.begun = begun
        self.phases.append((begun.phase, datetime.now(timezone.utc)))
        self.record_life()

    def newly_silent(self) -> str:
        """Return a text about its silence, once it has lasted for SILENCE seconds; "" later and before.

        Hooks may be silent for as long as HOOK_TIMEOUT permits.
        """
        begun = self.begun
        if not begun or begun.phase is Phase.HOOKS or self.result or self.hung or self.silence_reported:
            return ""
        if time.monotonic() < self.last_sign + SILENCE:
            return ""
        self.silence_reported = True
        text = f"no sign of life for {SILENCE:.0f} s while {begun.phase.value}"
        return f"{text}: its worker may hang, and is ended after {begun.limit:.0f} s"

    @property
    def hung_text(self) -> str:
        """How it hung, for messages."""
        if not self.begun:
            return f"its worker process did not begin within {START_LIMIT:.0f} s"
        return f"no sign of life for {self.begun.limit:.0f} s while {self.begun.phase.value}"

    @property
    def timeline(self) -> Timeline:
        return Timeline(self.lane, self.started, datetime.now(timezone.utc), tuple(self.phases))
