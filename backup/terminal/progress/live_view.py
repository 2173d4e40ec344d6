"""The live view on a terminal: a row for each job, the totals below, messages above.

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
from .activity import JobProgress, RunProgress
from .activity_text import amount, doing, left, percent, rate, run_text

MIN_WIDTH = 40  # columns; on a narrower terminal plain lines show more
# The columns from which on a row has rate, bar and amount.
RATE_FROM, BAR_FROM, AMOUNT_FROM = 60, 80, 110


class Terminal(RichConsole):
    """Never hides the cursor, which a process that is killed or stopped (Ctrl-Z) could not bring back."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class LiveView:
    """Draws the progress again and again. Satisfies display.View."""

    interval = 0.5

    def __init__(self, console: Console, **terminal: Any) -> None:
        """`terminal`: properties of the terminal that rich does not detect itself."""
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
            with suppress(OSError):  # the terminal is gone
                self._terminal.out(self._console.line(level, domain, text), highlight=False)

    def phase(self, domain: str, phase: Phase) -> None:
        self.message(Level.DEBUG, domain, phase.value)

    def show(self, run: RunProgress) -> None:
        with suppress(OSError):
            self._live.start()
            self._live.update(self._drawn(run), refresh=True)

    def close(self, run: RunProgress) -> None:
        """Remove the view; messages stay."""
        with suppress(OSError):
            self._live.stop()

    def _drawn(self, run: RunProgress) -> Group:
        width, height = self._terminal.size
        room = max(1, height - 3)  # for the totals, for jobs that are not shown, and for the cursor
        lines: list[Text] = []
        if len(run.jobs) > room:
            lines.append(_cut(f"and {len(run.jobs) - room} more"))
        lines.append(_cut(run_text(run)))
        return Group(_rows(run.jobs[:room], width), *lines)


def _rows(jobs: Sequence[JobProgress], width: int) -> Table:
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
    """Make a text from outside safe: one line, no markup, cut to the width."""
    return Text(one_line(text), no_wrap=True, overflow="ellipsis")
