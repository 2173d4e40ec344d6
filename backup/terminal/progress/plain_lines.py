"""What happens, a line each: on a plain terminal, in a file, in the journal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...job_result import Phase
from ...model import Level
from ..console import Console
from .activity import Look
from .activity_text import job_text


@dataclass(frozen=True)
class Lines:
    """Writes a line for each message and, where the interval is finite, for progress. Satisfies display.Face.

    Then it is a line for each phase and, every `interval` seconds, one for each job.
    """

    console: Console
    interval: float = math.inf

    def message(self, level: Level, domain: str, text: str) -> None:
        self.console.message(level, domain, text)

    def phase(self, domain: str, phase: Phase) -> None:
        level = Level.DEBUG if self.interval == math.inf else Level.INFO
        self.console.message(level, domain, phase.value)

    def look(self, look: Look) -> None:
        for job in look.jobs:
            self.console.message(Level.INFO, job.domain, job_text(job))

    def close(self, look: Look) -> None: ...
