"""What the engine reported, for tests to look at."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from backup.job_result import Phase
from backup.model import Level


@dataclass
class Recorder:
    """Keeps everything. Satisfies protocols.RunReporter."""

    messages: list[tuple[Level, str, str]] = field(default_factory=list)
    phases: list[tuple[str, Phase, float]] = field(default_factory=list)
    progressed: list[tuple[str, str, int, int]] = field(default_factory=list)
    plan: list[tuple[str, str, int]] = field(default_factory=list)
    ends: list[tuple[str, bool]] = field(default_factory=list)

    def message(self, level: Level, domain: str, text: str) -> None:
        self.messages.append((level, domain, text))

    def phase(self, domain: str, phase: Phase, limit: float = math.inf) -> None:
        self.phases.append((domain, phase, limit))

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        self.progressed.append((domain, target, done, size))

    def planned(self, uuid: str, domain: str, size: int) -> None:
        self.plan.append((uuid, domain, size))

    def ended(self, uuid: str, failed: bool) -> None:
        self.ends.append((uuid, failed))

    def told(self, level: Level) -> list[str]:
        return [text for at, _, text in self.messages if at is level]
