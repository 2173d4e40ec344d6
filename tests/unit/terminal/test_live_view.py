"""backup/terminal/progress/live_view.py: what the terminal shows, at any size."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from backup.job_result import Phase
from backup.model import Level
from backup.terminal.console import Console
from backup.terminal.progress.activity import JobProgress, RunProgress
from backup.terminal.progress.live_view import LiveView

GIB = 1 << 30
JOB = JobProgress("db01", Phase.STREAM, ("vda",), 9 * GIB, 20 * GIB, 312 << 20, 78)
PROGRESS = RunProgress((JOB,), 4, 1, 0, 9 * GIB, 80 * GIB, 312 << 20, 300, 61)


class Screen:
    """A live view, and what it wrote to its terminal."""

    def __init__(self, width: int = 100, height: int = 25, level: Level = Level.INFO) -> None:
        self.stream = io.StringIO()
        console = Console(self.stream, level)
        self.view = LiveView(console, force_terminal=True, width=width, height=height, color_system=None)

    def lines(self) -> list[str]:
        """Give what was written since the last time, without what moves the cursor."""
        written = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", written).splitlines()]


def test_a_job_s_row_has_phase_percent_rate_and_time_left_above_the_totals() -> None:
    screen = Screen()
    screen.view.show(PROGRESS)
    row, totals = screen.lines()
    assert re.sub("[━╸╺]+ +", "BAR  ", row) == "db01  streaming vda  BAR  45 %  312.0 MiB/s  1:18 left"
    assert totals == (
        "1 of 4 domains done, 11 %, 5:00 left, 9.0 GiB of 80.0 GiB, 312.0 MiB/s, running for 1:01"
    )


@pytest.mark.parametrize("width", [20, 40, 59, 60, 79, 80, 109, 110, 300])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    screen = Screen(width)
    wide = JobProgress("日本" * 30, Phase.SNAPSHOT, ("vda", "vdb"), 1023 * GIB, 1024 * GIB, 1 << 39, 360_000)
    screen.view.show(replace(PROGRESS, jobs=(JOB, wide)))
    lines = screen.lines()
    assert len(lines) == 3
    assert max(map(cell_len, lines)) <= width
    assert "45 %" in lines[0] or width == 20


def test_more_jobs_than_lines_are_counted_and_the_totals_stay() -> None:
    screen = Screen(height=6)
    screen.view.show(replace(PROGRESS, jobs=(JOB,) * 12))
    lines = screen.lines()
    assert len(lines) == 5
    assert lines[3] == "and 9 more"
    assert lines[4].startswith("1 of 4 domains done")


def test_before_the_first_job_there_are_the_totals_alone() -> None:
    screen = Screen()
    screen.view.show(RunProgress((), 0, 0, 0, 0, 0, 0.0, None, 2))
    assert screen.lines() == ["running for 0:02"]


def test_a_failure_is_one_line_above_the_view_however_long() -> None:
    screen = Screen(width=60)
    screen.view.show(PROGRESS)
    screen.lines()
    screen.view.message(Level.ERROR, "web", "failed: " + "no answer " * 20)
    message, row, _ = screen.lines()
    assert message == ("error: web: failed: " + "no answer " * 20).rstrip()
    assert row.startswith("db01")


def test_names_and_errors_can_neither_style_the_view_nor_move_the_cursor() -> None:
    screen = Screen()
    evil = "[red]a[/red] :smile:\x1b[2J\n"
    screen.view.show(replace(PROGRESS, jobs=(replace(JOB, domain=evil, targets=(evil,)),)))
    written = screen.stream.getvalue()
    assert screen.lines()[0].startswith("[red]a[/red] :smile:\\x1…  streaming [red]a[/")
    screen.view.message(Level.ERROR, evil, "[bold]all is lost[/bold] [/]")
    written += screen.stream.getvalue()
    assert screen.lines()[0] == "error: [red]a[/red] :smile:\\x1b[2J\\n: [bold]all is lost[/bold] [/]"
    assert "\x1b[2J" not in written


def test_after_the_end_the_view_is_gone_and_messages_stay() -> None:
    screen = Screen()
    screen.view.show(PROGRESS)
    screen.view.message(Level.INFO, "web", "saved")
    screen.view.close(PROGRESS)
    written = screen.stream.getvalue()
    assert "web: saved\n" in written.replace("\r", "")
    assert written.endswith("\x1b[1A\x1b[2K" * 2)


def test_the_cursor_is_never_hidden_so_that_no_kill_can_leave_it_so() -> None:
    screen = Screen()
    screen.view.show(PROGRESS)
    screen.view.close(PROGRESS)
    assert "\x1b[?25" not in screen.stream.getvalue()


def test_messages_below_the_level_are_not_shown() -> None:
    screen = Screen(level=Level.WARNING)
    screen.view.phase("web", Phase.STREAM)
    screen.view.message(Level.INFO, "web", "saved")
    assert screen.lines() == []
