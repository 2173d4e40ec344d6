"""The engine's words on a terminal or in the journal: a line an event, and tables at the end."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, TextIO

from ..errors import BackupError
from ..model import Disk, Finding, Gap, JobResult, Level, Phase
from ..printable import one_line
from ..report.run_report import RunResult
from ..selection import Choice
from ..units import size_text

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


def finding(found: Finding) -> str:
    """Give what was looked at, and the problem with its hint where there is one."""
    if found.problem is None:
        return f"ok       {one_line(found.subject)}\n"
    text = f"PROBLEM  {one_line(found.subject)}: {one_line(found.problem.message)}\n"
    return text + (f"         hint: {one_line(found.problem.hint)}\n" if found.problem.hint else "")


def summary(result: RunResult) -> str:
    """Give the run's table, a row per domain, and what it comes to."""
    head = ("domain", "consistency", "frozen", "images", "size", "data", "time", "result")
    rows = [_summary_row(one) for one in result.results]
    seconds = (result.finished - result.started).total_seconds()
    errors = "".join(f"{one_line(error)}\n" for error in result.errors)
    return f"{table(head, rows)}{errors}run {result.run}: {result.summary} in {seconds:.0f} s\n"


def listing(choices: Sequence[Choice]) -> str:
    """Give a table of all domains and disks: what applies to them, and what says so."""
    head = ("domain", "state", "freeze", "disk", "source", "backup")
    several = len({choice.domain.uri for choice in choices}) > 1
    rows = []
    for choice in choices:
        domain = choice.domain
        first = (*([domain.uri] if several else []), domain.name, domain.state.value)
        first += (f"{choice.freeze} ({choice.freeze_from})",)
        if domain.problem or not domain.disks:
            rows.append((*first, "", "", _verdict(choice)))
            first = ("",) * len(first)
        for disk in domain.disks:
            rows.append((*first, disk.target, disk.source, _disk_verdict(choice, disk)))
            first = ("",) * len(first)
    return table((*(["libvirt"] if several else []), *head), rows)


def _verdict(choice: Choice) -> str:
    if choice.skipped:
        return f"no: {choice.skipped}"
    if choice.domain.problem:
        return f"FAILS: {choice.domain.problem.message}"
    return f"yes ({choice.selected_by})"


def _disk_verdict(choice: Choice, disk: Disk) -> str:
    if choice.skipped or disk.image:
        return _verdict(choice)
    return f"{'FAILS' if disk.gap is Gap.BROKEN else 'no'}: {disk.not_covered}"


def selection_json(choices: Sequence[Choice]) -> list[dict[str, object]]:
    """Give the same for programs."""
    return [
        {
            "name": choice.domain.name,
            "uuid": choice.domain.uuid,
            "libvirt": choice.domain.uri,
            "state": choice.domain.state.value,
            "selected": not choice.skipped,
            "selected_by": "" if choice.skipped else choice.selected_by,
            "reason": choice.skipped,
            "problem": choice.domain.problem.message if choice.domain.problem else "",
            "freeze": choice.freeze,
            "freeze_from": choice.freeze_from,
            "disks": [
                {
                    "target": disk.target,
                    "source": disk.source,
                    "image": str(disk.image) if disk.image else None,
                    "reason": disk.not_covered,
                    "gap": disk.gap.value,
                }
                for disk in choice.domain.disks
            ],
        }
        for choice in choices
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give left-aligned columns, two spaces apart."""
    lines = [[one_line(cell) for cell in row] for row in (head, *rows)]
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
