"""Where the report of a run goes: REPORT_FILE, and the history in STATE_DIR."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import BackupError, reason
from .history import History, Report
from .model import Level, Status
from .proof import Proofs, now, proofs
from .protocols import Reporter
from .report import RunResult, report_json
from .settings import Settings
from .whole_file import write_whole


def publish(result: RunResult, settings: Settings, reporter: Reporter) -> Report:
    """Put the report everywhere; where that fails it is only said, as the domains are what they are."""
    _note_saved(result, settings, reporter)
    report = report_json(result, proofs(settings.state_dir))
    if settings.report_file:
        content = json.dumps(report, indent=2).encode() + b"\n"
        try:
            write_whole(Path(settings.report_file), content, 0o644)
        except OSError as error:
            message = f"cannot write the report {settings.report_file}: {reason(error)}"
            _tell(BackupError(message, "see REPORT_FILE"), reporter)
    try:
        History(settings.state_dir, settings.report_days).keep(report)
    except OSError as error:
        message = f"cannot keep the report in {settings.state_dir}: {reason(error)}"
        _tell(BackupError(message, "see STATE_DIR"), reporter)
    return report


def _note_saved(result: RunResult, settings: Settings, reporter: Reporter) -> None:
    proven = {"verified": now(), "failure": ""} if result.verified else {}
    changes = {
        one.uuid: {"saved": one.taken.isoformat(timespec="seconds"), **proven}
        for one in result.results
        if one.taken and one.status is Status.SAVED
    }
    if changes:
        Proofs(settings.state_dir, reporter).note_all(changes)


def _tell(error: BackupError, reporter: Reporter) -> None:
    hint = f" (hint: {error.hint})" if error.hint else ""
    reporter.message(Level.ERROR, "", f"{error.message}{hint}")
