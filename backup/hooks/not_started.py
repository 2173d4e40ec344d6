"""Notifies of a run that a timer started, and that did not begin: no report and no metrics have it.

Its notification is due as if it were the last run's, and the next run's as if this had been the one before.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Callable

from ..errors import AlreadyRunning, BackupError, ConfigError
from ..protocols import Reporter
from ..report.history import History
from ..report.report_types import Report
from ..report.run_report import RunResult, new_run_id, report_json
from ..settings import Settings
from ..system.atomic_file import write_atomically
from ..system.private_directory import make_private
from ..system.service import in_a_service
from .notify import send_notifications

FILE = "not-started.json"  # in STATE_DIR: the last one, until a run begins


@dataclass(frozen=True)
class NotStarted:
    """What is stored: the run's report, and the other run that was `active`, "" if none was."""

    active: str
    report: Report


def is_scheduled() -> bool:
    """Return whether a timer started this process, rather than an admin, who sees its messages."""
    return in_a_service() and not sys.stderr.isatty()


def notify_not_started(
    error: BackupError, exit_code: int, settings: Settings, reporter: Reporter, check_stop: Callable[[], None]
) -> None:
    """Send the notifications of a run that ended with this error before it began; failures are only logged.

    Another run that is active is notified once, whatever number of runs it keeps from beginning.
    """
    now = datetime.now(timezone.utc)
    errors = [one.message for one in (error.errors if isinstance(error, ConfigError) else [error])]
    about = (new_run_id(), socket.gethostname(), now, now, ())
    result = RunResult(*about, errors=errors, not_started=exit_code, group=settings.group)
    report = report_json(result, {})
    active = error.active if isinstance(error, AlreadyRunning) else ""
    before = _read(settings.state_dir)
    if active and before and before.active == active:
        return
    _write(settings.state_dir, NotStarted(active, report))
    reports = [before.report] if before else []
    previous = chain(reports, History(settings.state_dir, settings.report_days).newest_first())
    send_notifications(result, report, previous, settings, reporter, check_stop)


def last_not_started(state_dir: str) -> Iterator[Report]:
    """Yield the report of the last run that did not begin, if none has begun since."""
    if found := _read(state_dir):
        yield found.report


def forget_not_started(state_dir: str) -> None:
    """Forget it: a run has begun, and was notified."""
    with suppress(OSError):
        Path(state_dir, FILE).unlink(missing_ok=True)


def _read(state_dir: str) -> NotStarted | None:
    # there is none, or another version wrote it
    with suppress(OSError, ValueError, TypeError, AttributeError):
        found = NotStarted(**json.loads(Path(state_dir, FILE).read_bytes()))
        return found if found.report.keys() >= Report.__required_keys__ else None
    return None


def _write(state_dir: str, content: NotStarted) -> None:
    with suppress(OSError):  # then the same may be notified again
        make_private(Path(state_dir))
        write_atomically(Path(state_dir, FILE), json.dumps(asdict(content)).encode())
