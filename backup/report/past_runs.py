"""Finds the report of a past run, and the results of all runs of the last days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Optional

from ..command import COMMAND
from ..errors import BackupError, ConfigError
from .calendar import Days
from .copy_record import CopyRecord, read_record
from .history import History
from .report_types import Report

NAMED = 3  # runs named in a hint


@dataclass(frozen=True)
class PastRuns:
    """`left_out` is the number of reports with another schema, that of another version of this program.

    `copy` is what the last copy came to, with the newest run.
    """

    report: Report
    days: Days
    left_out: int
    copy: Optional[CopyRecord] = None


def past_runs_of(histories: Sequence[History], run: str, today: date) -> Sequence[PastRuns]:
    """Read the histories of several groups; those without such a run are left out.

    Raises an error of `past_runs` if no group has such a run.
    """
    found, errors = [], []
    for history in histories:
        try:
            found.append(past_runs(history, run, today))
        except BackupError as error:
            errors.append(error)
    if not found:
        raise next((error for error in errors if isinstance(error, ConfigError)), errors[0])
    return found


def newest(pasts: Sequence[PastRuns]) -> PastRuns:
    """Return the one whose run began last."""
    return max(pasts, key=lambda past: past.report["started"])


def past_runs(history: History, run: str, today: date) -> PastRuns:
    """Read the history; "" stands for the newest run.

    Raises BackupError if there is no report at all, ConfigError if there is none of this run.
    """
    days = Days(today)
    chosen: Report | None = None
    known: list[str] = []
    left_out = 0
    for report in history.newest_first_or_foreign():
        if not report:
            left_out += 1
            continue
        known.append(report["run"])
        days.add(report)
        if chosen is None and run in ("", report["run"]):
            chosen = report
    if chosen:
        copy = None if run else read_record(str(history.directory.parent))
        return PastRuns(chosen, days, left_out, copy)
    if known:
        hint = f"the newest run{'' if len(known) == 1 else 's'}: {', '.join(known[:NAMED])}"
        raise ConfigError([BackupError(f"there is no report of run {run!r}", hint)])
    others = f" of this version, {left_out} of other versions" if left_out else ""
    message = f"there is no report in {history.directory}{others}"
    raise BackupError(message, f"`{COMMAND} backup` stores one; check the path and permissions of STATE_DIR")
