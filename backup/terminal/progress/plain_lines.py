"""Progress and messages as plain lines: on a plain terminal, in a file, in the journal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...job_result import Phase
from ...model import Level
from ..console import Console
from .activity import RunProgress
from .activity_text import job_text


@dataclass(frozen=True)
class PlainLines:
    """Writes a line per message. Satisfies display.View.

    With a finite `interval` also a line per phase and, every `interval` seconds, one per running job.
    """

    console: Console
    interval: float = math.inf

    def message(self, level: Level, domain: str, text: str) -> None:
        self.console.message(level, domain, text)

    def phase(self, domain: str, phase: Phase) -> None:
        level = Level.DEBUG if self.interval == math.inf else Level.INFO
        self.console.message(level, domain, phase.value)

    def show(self, run: RunProgress) -> None:
        for job in run.jobs:
            self.console.message(Level.INFO, job.domain, job_text(job))

    def close(self, run: RunProgress) -> None: ...
