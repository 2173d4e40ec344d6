"""Writes messages to a terminal, a file or the journal, a line each."""

from __future__ import annotations

import math
import os
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

    `in_journal` prefixes each line with its level in the form that the journal reads (man 3 sd-daemon).
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
        prefix = f"{domain}: " if domain else ""
        return f"{mark}{LABELS.get(level, '')}{one_line(prefix + text)}"

    def phase(self, domain: str, phase: Phase, limit: float = math.inf) -> None:
        self.message(Level.DEBUG, domain, phase.value)

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        """Ignore it: only a display shows progress."""

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
            return  # the terminal is gone, but the run has to go on: guests may have to be thawed


def console_on_standard_error(level: Level) -> Console:
    """Give a console for standard error; systemd names the journal in JOURNAL_STREAM (man 5 systemd.exec)."""
    status = os.fstat(sys.stderr.fileno())
    stream_id = f"{status.st_dev}:{status.st_ino}"
    return Console(sys.stderr, level, in_journal=os.environ.get("JOURNAL_STREAM") == stream_id)


def _on_standard_error(level: Level, in_journal: bool) -> Console:
    return Console(sys.stderr, level, in_journal)
