"""The live view on a terminal: a row for each job, the totals below, and what is said above.

The only importer of rich.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ...job_result import Phase
from ...model import Level
from ...text import one_line
from ..console import Console
from .activity import JobLook, Look
from .activity_text import amount, doing, left, percent, rate, run_text

MIN_WIDTH = 40  # columns; on a narrower terminal lines say more
# What a row has from so many columns on; without the bar and the rest it still says what matters.
RATE_FROM, BAR_FROM, AMOUNT_FROM = 60, 80, 110


class Terminal(RichConsole):
    """Never hides the cursor, which a process that is killed or stopped (Ctrl-Z) could not bring back."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class LiveView:
    """Draws how it all stands, over and over. Satisfies display.Face."""

    interval = 0.5

    def __init__(self, console: Console, **terminal: Any) -> None:
        """`terminal`: what is told rich of the terminal, rather than what it sees itself."""
        self._console = console
        self._terminal = Terminal(file=console.stream, **terminal)
        self._live = Live(
            console=self._terminal,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def message(self, level: Level, domain: str, text: str) -> None:
        if level <= self._console.level:
            with suppress(OSError):  # the terminal is gone: nobody reads this
                self._terminal.out(self._console.line(level, domain, text), highlight=False)

    def phase(self, domain: str, phase: Phase) -> None:
        self.message(Level.DEBUG, domain, phase.value)

    def look(self, look: Look) -> None:
        with suppress(OSError):
            self._live.start()
            self._live.update(self._drawn(look), refresh=True)

    def close(self, look: Look) -> None:
        """Remove the view; what was said stays."""
        with suppress(OSError):
            self._live.stop()

    def _drawn(self, look: Look) -> Group:
        width, height = self._terminal.size
        room = max(1, height - 3)  # for the totals, for jobs that are not shown, and for the cursor
        lines: list[Text] = []
        if len(look.jobs) > room:
            lines.append(_cut(f"and {len(look.jobs) - room} more"))
        lines.append(_cut(run_text(look)))
        return Group(_rows(look.jobs[:room], width), *lines)


def _rows(jobs: Sequence[JobLook], width: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(max_width=24)  # these two give way where it is narrow
    table.add_column()
    for job in jobs:
        row: list[Text | ProgressBar] = [_cut(job.domain), _cut(doing(job))]
        if width >= BAR_FROM:
            bar = ProgressBar(max(1, job.total), job.done, width=20 if width >= AMOUNT_FROM else 10)
            row.append(bar if job.total else Text())
        row.append(Text(percent(job.done, job.total)))
        if width >= AMOUNT_FROM:
            row.append(Text(amount(job.done, job.total)))
        if width >= RATE_FROM:
            row.append(Text(rate(job.rate)))
        row.append(Text(left(job.left)))
        table.add_row(*row)
    for column in table.columns[2:]:
        column.no_wrap, column.justify = True, "right"
    return table


def _cut(text: str) -> Text:
    """Give a text that comes from outside: of one line, without markup, cut where there is no room for it."""
    return Text(one_line(text), no_wrap=True, overflow="ellipsis")
