"""Where the report of a run goes: REPORT_FILE, the history in STATE_DIR, and METRICS_FILE."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

from ..errors import BackupError, reason
from ..job_result import Status
from ..model import Level
from ..protocols import Reporter
from ..settings import Settings
from ..system.atomic_file import write_atomically
from .domain_record import Proofs, now, proofs
from .history import History
from .report_types import Report
from .run_report import RunResult, report_json


def publish(result: RunResult, settings: Settings, reporter: Reporter) -> Report:
    """Put the report everywhere; where that fails it is only said, as the domains are what they are."""
    _note_saved(result, settings, reporter)
    report = report_json(result, proofs(settings.state_dir))
    if settings.report_file:
        content = json.dumps(report, indent=2).encode() + b"\n"
        try:
            write_atomically(Path(settings.report_file), content, 0o644)
        except OSError as error:
            message = f"cannot write the report {settings.report_file}: {reason(error)}"
            _tell(BackupError(message, "see REPORT_FILE"), reporter)
    try:
        History(settings.state_dir, settings.report_days).keep(report)
    except OSError as error:
        message = f"cannot keep the report in {settings.state_dir}: {reason(error)}"
        _tell(BackupError(message, "see STATE_DIR"), reporter)
    publish_metrics(settings, reporter, report)
    return report


def publish_metrics(settings: Settings, reporter: Reporter, newest: Report | None = None) -> None:
    """Write METRICS_FILE, if there is to be one. `newest` is the report of a run, which may not be kept."""
    if not settings.metrics_file:
        return
    from .metrics import exposition  # which needs a package that nothing else does

    kept = History(settings.state_dir, settings.report_days).newest_first()
    reports = chain([newest], (one for one in kept if one["run"] != newest["run"])) if newest else kept
    try:
        content = exposition(reports, proofs(settings.state_dir))
        write_atomically(Path(settings.metrics_file), content, 0o644)
    except OSError as error:
        message = f"cannot write the metrics {settings.metrics_file}: {reason(error)}"
        hint = "see METRICS_FILE, and ReadWritePaths in the unit"
        _tell(BackupError(message, hint), reporter)


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
