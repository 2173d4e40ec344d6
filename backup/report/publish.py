"""Publishes the report of a run: REPORT_FILE and the history in STATE_DIR; and METRICS_FILE."""

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
from .copy_record import CopyRecord, read_record
from .domain_record import DomainRecords, now, read_records
from .history import History
from .report_types import Report
from .run_report import RunResult, report_json


def publish(result: RunResult, settings: Settings, reporter: Reporter) -> Report:
    """Publish the report. A failure is only reported: it does not change the run's result."""
    _record_saved(result, settings, reporter)
    report = report_json(result, read_records(settings.state_dir))
    if settings.report_file:
        content = json.dumps(report, indent=2).encode() + b"\n"
        try:
            write_atomically(Path(settings.report_file), content, 0o644)
        except OSError as error:
            message = f"cannot write the report {settings.report_file}: {reason(error)}"
            _report_error(BackupError(message, "see REPORT_FILE"), reporter)
    try:
        History(settings.state_dir, settings.report_days).store(report)
    except OSError as error:
        message = f"cannot store the report in {settings.state_dir}: {reason(error)}"
        _report_error(BackupError(message, "see STATE_DIR"), reporter)
    return report


def publish_metrics(settings: Settings, reporter: Reporter, newest: Report | None = None) -> None:
    """Write METRICS_FILE if it is set. `newest` is the report of a run, which may not be in the history."""
    if not settings.metrics_file:
        return
    from .metrics import exposition  # needs a package that nothing else needs

    past = History(settings.state_dir, settings.report_days).newest_first()
    reports = chain([newest], (one for one in past if one["run"] != newest["run"])) if newest else past
    try:
        # before the first copy its time is 0, or nobody would learn that none ever runs
        none_yet = CopyRecord(began="", finished="")
        copy = (read_record(settings.state_dir) or none_yet) if settings.copy_repository else None
        content = exposition(reports, read_records(settings.state_dir), settings.group, copy)
        write_atomically(Path(settings.metrics_file), content, 0o644)
    except OSError as error:
        message = f"cannot write the metrics {settings.metrics_file}: {reason(error)}"
        hint = "see METRICS_FILE, and ReadWritePaths in the unit"
        _report_error(BackupError(message, hint), reporter)


def _record_saved(result: RunResult, settings: Settings, reporter: Reporter) -> None:
    verified = {"verified": now(), "failure": ""} if result.verified else {}
    changes = {
        one.uuid: {"saved": one.taken.isoformat(timespec="seconds"), **verified}
        for one in result.results
        if one.taken and one.status is Status.SAVED
    }
    if changes:
        DomainRecords(settings.state_dir, reporter).update_all(changes)


def _report_error(error: BackupError, reporter: Reporter) -> None:
    reporter.message(Level.ERROR, "", str(error))
