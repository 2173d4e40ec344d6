"""backup/terminal/console.py: lines for people and for the journal; and tables.py."""

from __future__ import annotations

import io
import os
import pty
from contextlib import suppress

import pytest

from backup.errors import BackupError
from backup.model import Finding, Level
from backup.terminal.console import Console
from backup.terminal.tables import finding, summary, table

from ..report.test_run_report import FAILED, LOST, SAVED, SKIPPED, run_of


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def test_a_message_names_its_domain_and_its_level(stream: io.StringIO) -> None:
    console = Console(stream)
    console.message(Level.INFO, "web", "saved")
    console.message(Level.WARNING, "web", "not frozen")
    console.message(Level.ERROR, "", "no disk space")
    assert stream.getvalue() == "web: saved\nwarning: web: not frozen\nerror: no disk space\n"


def test_messages_below_the_level_are_not_shown(stream: io.StringIO) -> None:
    console = Console(stream, level=Level.WARNING)
    for level in Level:
        console.message(level, "", level.name)
    assert stream.getvalue() == "error: ERROR\nwarning: WARNING\n"


def test_in_the_journal_each_message_has_its_level(stream: io.StringIO) -> None:
    console = Console(stream, in_journal=True)
    console.message(Level.INFO, "web", "saved")
    console.error(BackupError("no disk space"))
    assert stream.getvalue() == "<6>web: saved\n<3>error: no disk space\n"


def test_an_error_s_hint_has_a_line_of_its_own(stream: io.StringIO) -> None:
    Console(stream).error(BackupError("no disk space", "df -h"))
    assert stream.getvalue() == "error: no disk space\nhint: df -h\n"


def test_a_name_can_neither_forge_a_line_nor_move_the_cursor(stream: io.StringIO) -> None:
    console = Console(stream)
    console.message(Level.INFO, "web\nerror: all is lost", "\x1b[2J\r\u202eb\u00e4r")
    console.error(BackupError("a\nb", "c\nd"))
    assert stream.getvalue() == (
        "web\\nerror: all is lost: \\x1b[2J\\r\\u202ebär\nerror: a\\nb\nhint: c\\nd\n"
    )


def test_a_terminal_that_hangs_up_does_not_end_the_run() -> None:
    ours, theirs = pty.openpty()
    terminal = os.fdopen(theirs, "w")
    console = Console(terminal)
    os.close(ours)
    console.message(Level.WARNING, "", "stopping: waiting for the workers to clean up")
    console.error(BackupError("interrupted", "the hint"))
    with suppress(OSError):
        terminal.close()


def test_the_summary_has_a_row_per_domain_and_a_line_of_totals() -> None:
    assert summary(run_of(SAVED, FAILED, SKIPPED)) == (
        "domain  consistency  frozen  images  size     data     time   result\n"
        "web     filesystem   0.12 s  1       4.0 KiB  1.0 KiB  2.5 s  saved\n"
        "db      -            -       -       -        -        0.0 s  failed: no answer\n"
        "gone    -            -       -       -        -        0.0 s  skipped: gone\n"
        "run 20240203T040506Z-abcd: 1 saved, 1 failed, 1 skipped in 61 s\n"
    )


def test_the_summary_has_the_errors_of_the_run() -> None:
    assert summary(run_of(SAVED, errors=(LOST, "two\nlines"))).splitlines()[2:] == [
        LOST,
        "two\\nlines",
        "run 20240203T040506Z-abcd: 1 saved in 61 s",
    ]


def test_a_run_without_domains_had_nothing_to_do() -> None:
    assert summary(run_of()).endswith("run 20240203T040506Z-abcd: nothing to do in 61 s\n")


def test_a_finding_is_one_line_or_a_problem_with_its_hint() -> None:
    assert finding(Finding("libvirt")) == "ok       libvirt\n"
    problem = BackupError("cannot connect", "is it running?")
    assert finding(Finding("libvirt", problem)) == (
        "PROBLEM  libvirt: cannot connect\n         hint: is it running?\n"
    )


def test_a_table_without_rows_is_its_head() -> None:
    assert table(("a", "bc"), []) == "a  bc\n"
