"""Notifications of how a run ended: the admin's NOTIFY_COMMAND, and the monitoring at PING_URL."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterable, Mapping
from functools import partial
from http.client import HTTPException
from typing import Callable
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from ..errors import BackupError, reason
from ..exit_codes import FAILED, SUCCESS
from ..job_result import Status
from ..model import Level
from ..protocols import Reporter
from ..report.report_types import Report
from ..report.run_report import RunResult
from ..settings import Settings
from ..system.time_limit import NoThread, within
from .hooks import about_run, environment
from .program import AdminProgram

PING_TRIES = 3
PING_TIMEOUT = 10  # seconds for an answer
PING_PAUSE = 1.0  # seconds before the second try


def send_notifications(
    result: RunResult,
    report: Report,
    previous: Iterable[Report],
    settings: Settings,
    reporter: Reporter,
    check_stop: Callable[[], None],
) -> None:
    """Send the notifications; failures are only logged.

    `previous` are the stored reports, the newest first; this run's may be among them.
    """
    try:
        if settings.notify_command and _due(report, previous, settings.notify_on):
            _notify(result, report, settings, reporter, check_stop)
    except BackupError as error:
        reporter.message(Level.ERROR, "", f"notification failed: {error}")
    try:
        if settings.ping_url:
            ping(settings.ping_url, result.exit_code == 0, _line(result), check_stop)
    except BackupError as error:
        reporter.message(Level.WARNING, "", str(error))


def _due(report: Report, previous: Iterable[Report], notify_on: str) -> bool:
    if notify_on == "change":
        return changed(report, (one for one in previous if one["run"] != report["run"]))
    return notify_on == "always" or report["exit_code"] != 0


def changed(report: Report, previous: Iterable[Report]) -> bool:
    """Return whether something fails that did not the last time, or works again; `previous` are newest first.

    The last time is that of each domain, as not every run selects all. A domain without one is expected to
    work.
    """
    now = dict(_failing(report))
    in_trouble = _in_trouble(report)
    was_in_trouble = False
    for number, before in enumerate(previous):
        if number == 0:
            was_in_trouble = _in_trouble(before)
        then = _failing(before)
        if any(now.pop(uuid) != then[uuid] for uuid in now.keys() & then.keys()):
            return True
        if not now:
            break
    return in_trouble != was_in_trouble or any(now.values())


def _failing(report: Report) -> Mapping[str, bool]:
    """Return, by UUID of each domain that was not skipped, whether it failed."""
    statuses = {one["uuid"]: one["status"] for one in report["domains"]}
    return {uuid: status == Status.FAILED for uuid, status in statuses.items() if status != Status.SKIPPED}


def _in_trouble(report: Report) -> bool:
    """Return whether something failed that belongs to no domain."""
    return report["exit_code"] not in (SUCCESS, FAILED) or bool(report["errors"])


def _notify(
    result: RunResult, report: Report, settings: Settings, reporter: Reporter, check_stop: Callable[[], None]
) -> None:
    def log(line: str) -> None:
        reporter.message(Level.DEBUG, "", f"{name}: {line}")

    name = settings.notify_command[0]
    variables = environment({"RUN": result.run, **about_run(result)}, result.group)
    program = AdminProgram(name, settings.notify_command, variables, settings.notify_timeout)
    program.run(log, check_stop, stdin=json.dumps(report, indent=2).encode() + b"\n")


def _line(result: RunResult) -> str:
    of_group = f", group {result.group}" if result.group else ""
    return f"{result.host}{of_group}: run {result.run}: {result.summary}"


def ping(url: str, good: bool, text: str, check_stop: Callable[[], None]) -> None:
    """Request a URL with `text` as its body, and "/fail" after its path unless all is good.

    As in https://healthchecks.io/docs/http_api/. Raises BackupError without the URL, which is a secret.
    """
    parts = urlsplit(url)
    if not good:
        parts = parts._replace(path=f"{parts.path.rstrip('/')}/fail")
    request = urllib.request.Request(parts.geturl(), text.encode(), {"Content-Type": "text/plain"})
    failure = ""
    for number in range(PING_TRIES):
        check_stop()
        time.sleep(number * PING_PAUSE)
        try:
            within(PING_TIMEOUT, partial(_ask, request))
            return
        except HTTPError as error:
            failure = f"HTTP status {error.code}"
            error.close()
            if error.code < 500:  # a retry would get the same answer
                break
        except URLError as error:
            failure = reason(error.reason) if isinstance(error.reason, OSError) else "no answer"
        except NoThread as error:
            failure = error.message
        except OSError as error:  # a TimeoutError among them
            failure = reason(error)
        except (HTTPException, ValueError):  # its message may quote the URL
            failure = "no answer in HTTP"
    raise BackupError(f"cannot ping {parts.hostname}: {failure}", "see PING_URL")


def _ask(request: urllib.request.Request) -> None:
    with urllib.request.urlopen(request):
        pass
