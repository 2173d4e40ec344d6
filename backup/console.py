"""The engine's words on a terminal or in the journal: a line an event, and tables at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from .errors import BackupError
from .model import Finding, JobResult, Level
from .report import RunResult
from .selection import Choice
from .units import size_text

LABELS = {Level.ERROR: "error: ", Level.WARNING: "warning: "}


@dataclass(frozen=True)
class Console:
    """Writes lines. Satisfies model.Reporter.

    `in_journal` marks each line with its level, as the journal understands it (man 3 sd-daemon).
    """

    stream: TextIO
    level: Level = Level.INFO
    show_progress: bool = False
    in_journal: bool = False

    def message(self, level: Level, domain: str, text: str) -> None:
        if level <= self.level:
            mark = f"<{level.value}>" if self.in_journal else ""
            who = f"{domain}: " if domain else ""
            self._write(f"{mark}{LABELS.get(level, '')}{_one_line(who + text)}")

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        if self.show_progress:
            text = f"{target} {100 * done // size} % of {size_text(size)}"
            self.message(Level.INFO, domain, text)

    def error(self, error: BackupError) -> None:
        """Write an error and, on a line of its own, its hint."""
        self.message(Level.ERROR, "", error.message)
        if error.hint:
            self._write(f"hint: {_one_line(error.hint)}")

    def _write(self, line: str) -> None:
        try:
            self.stream.write(line + "\n")
            self.stream.flush()
        except OSError:
            return  # the terminal is gone: nobody reads this, but the run has guests to let go


def finding(found: Finding) -> str:
    """Give what was looked at, and the problem with its hint where there is one."""
    if found.problem is None:
        return f"ok       {_one_line(found.subject)}\n"
    text = f"PROBLEM  {_one_line(found.subject)}: {_one_line(found.problem.message)}\n"
    return text + (f"         hint: {_one_line(found.problem.hint)}\n" if found.problem.hint else "")


def summary(result: RunResult) -> str:
    """Give the run's table, a row per domain, and what it comes to."""
    head = ("domain", "consistency", "frozen", "images", "size", "data", "time", "result")
    rows = [_summary_row(one) for one in result.results]
    seconds = (result.finished - result.started).total_seconds()
    counts = [
        (status, sum(one.status == status for one in result.results))
        for status in ("saved", "failed", "skipped")
    ]
    told = ", ".join(f"{count} {status}" for status, count in counts if count) or "nothing to do"
    return f"{table(head, rows)}run {result.run}: {told} in {seconds:.0f} s\n"


def listing(choices: Sequence[Choice]) -> str:
    """Give a table of all domains and disks, and why what is left out is."""
    head = ("domain", "state", "disk", "source", "backup")
    rows = []
    for choice in choices:
        first = (choice.domain.name, choice.domain.state.value)
        verdict = f"no: {choice.skipped}" if choice.skipped else "yes"
        if not choice.domain.disks:
            rows.append((*first, "", "", verdict))
        for disk in choice.domain.disks:
            told = verdict if disk.image else f"no: {disk.not_covered}"
            rows.append((*first, disk.target, disk.source, told))
            first = ("", "")
    return table(head, rows)


def selection_json(choices: Sequence[Choice]) -> list[dict[str, object]]:
    """Give the same for programs."""
    return [
        {
            "name": choice.domain.name,
            "uuid": choice.domain.uuid,
            "state": choice.domain.state.value,
            "selected": not choice.skipped,
            "reason": choice.skipped,
            "disks": [
                {
                    "target": disk.target,
                    "source": disk.source,
                    "image": str(disk.image) if disk.image else None,
                    "reason": disk.not_covered,
                }
                for disk in choice.domain.disks
            ],
        }
        for choice in choices
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give left-aligned columns, two spaces apart."""
    lines = [[_one_line(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() + "\n" for line in lines
    )


def _summary_row(one: JobResult) -> tuple[str, ...]:
    return (
        one.name,
        one.consistency.value if one.consistency else "-",
        f"{one.frozen_seconds:.2f} s" if one.frozen_seconds else "-",
        str(len(one.images)) if one.images else "-",
        size_text(sum(image.size for image in one.images)) if one.images else "-",
        size_text(sum(image.data_bytes for image in one.images)) if one.images else "-",
        f"{one.seconds:.1f} s",
        f"{one.status.value}: {one.reason}" if one.reason else one.status.value,
    )


def _one_line(text: str) -> str:
    """Names come from outside: let none of them forge a line or move the cursor."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
