"""The engine's words on a terminal or in the journal: a line an event, and tables at the end."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Callable, TextIO

from ..errors import BackupError
from ..job_result import Phase
from ..model import Level
from ..text import one_line

LABELS = {Level.ERROR: "error: ", Level.WARNING: "warning: "}


@dataclass(frozen=True)
class Console:
    """Writes lines. Satisfies protocols.Reporter.

    `in_journal` marks each line with its level, as the journal understands it (man 3 sd-daemon).
    """

    stream: TextIO
    level: Level = Level.INFO
    in_journal: bool = False

    def __reduce__(self) -> tuple[Callable[..., Console], tuple[object, ...]]:
        """Write to standard error in another process too, which has inherited it."""
        return _on_standard_error, (self.level, self.in_journal)

    def message(self, level: Level, domain: str, text: str) -> None:
        if level <= self.level:
            self._write(self.line(level, domain, text))

    def line(self, level: Level, domain: str, text: str) -> str:
        """Give the line of a message."""
        mark = f"<{level.value}>" if self.in_journal else ""
        who = f"{domain}: " if domain else ""
        return f"{mark}{LABELS.get(level, '')}{one_line(who + text)}"

    def phase(self, domain: str, phase: Phase, limit: float = math.inf) -> None:
        self.message(Level.DEBUG, domain, phase.value)

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        """Say nothing: whoever has much to do reports to a display."""

    def error(self, error: BackupError) -> None:
        """Write an error and, on a line of its own, its hint."""
        self.message(Level.ERROR, "", error.message)
        if error.hint:
            self._write(f"hint: {one_line(error.hint)}")

    def _write(self, line: str) -> None:
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except OSError:
            return  # the terminal is gone: nobody reads this, but the run has guests to let go


def _on_standard_error(level: Level, in_journal: bool) -> Console:
    return Console(sys.stderr, level, in_journal)
