"""Whether a command's exit code, its report, and what the repository holds agree."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from tests.chaos.nodes import Running
from tests.chaos.repository import Point
from tests.chaos.violation import Violation

CODES = {0, 1, 3, 11, 129, 130, 143}
BY_SIGNAL = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP}  # SIGTERM: before its handler stood
# what multiprocessing itself writes in a worker whose main process is killed as it sends the first order
ORPHAN = re.compile(
    r"Traceback \(most recent call last\):\n(  File .*(<string>|multiprocessing/spawn\.py).*\n(    .*\n)*)+"
    r"(EOFError: Ran out of input|_pickle\.UnpicklingError: pickle data was truncated)\n"
)
NO_DOMAIN = re.compile(r"there is no domain '(\w+)'")
GONE = "the domain is no longer defined"
AGREE = "exit code, report and repository agree"


def violations(
    running: Running, points: Sequence[Point], undefined: Set[str], noted: Set[str] = frozenset()
) -> Iterator[Violation]:
    """Hold a command that has ended against its report and the points of its repository.

    `undefined`: the domains that an admin has undefined in this round. `noted`: the restore points, as
    RUN.UUID.ATTEMPT, that are known as failed, and that the next run removes.
    """
    code = running.code
    missing = {*NO_DOMAIN.findall(running.words)}
    # it named a domain that was gone by then, so nothing has begun, and there is no report
    refused = code == 2 and bool(missing) and missing <= undefined
    if code not in CODES | BY_SIGNAL and not refused:
        yield Violation("a known exit code", str(running))
    words = ORPHAN.sub("", running.words) if code in BY_SIGNAL else running.words
    if "Traceback (most recent call last)" in words:
        yield Violation("no bug shows", f"{running} wrote a traceback")
    if running.order.command == "backup" and code not in BY_SIGNAL | {11} and not refused:
        texts = (*_of_backup(running, points, undefined), *_of_unsaved(running, points, noted))
        yield from (Violation(AGREE, f"{running}: {text}") for text in texts)


def later(running: Running, points: Sequence[Point]) -> Iterator[Violation]:
    """Hold it against the points once more when the next run has removed what was noted as failed."""
    yield from (Violation(AGREE, f"{running}: {text}") for text in _of_unsaved(running, points, frozenset()))


def report_of(running: Running) -> Mapping[str, Any]:
    """Give the report that a backup wrote, or nothing."""
    try:
        report: Mapping[str, Any] = json.loads(running.report.read_text())
    except FileNotFoundError:
        return {}
    return report


def _of_backup(running: Running, points: Sequence[Point], undefined: Set[str]) -> Iterator[str]:
    report = report_of(running)
    if not report:
        yield "there is no report"
        return
    if report["exit_code"] != running.code:
        yield f"the report has exit code {report['exit_code']}"
    selected = [domain for domain in report["domains"] if domain["selected"]]
    statuses = [domain["status"] for domain in selected]
    failed = "failed" in statuses or bool(report["errors"])
    skipped = {(domain["name"], domain["reason"]) for domain in selected if domain["status"] == "skipped"}
    if running.code == 0 and (failed or not skipped <= {(name, GONE) for name in undefined}):
        yield f"not all are saved: {statuses}, {report['errors']}"
    if running.code == 3 and not failed:
        yield f"nothing has failed: {statuses}"
    if running.code == 1 and "saved" in statuses:
        yield "domains are saved"
    for domain in report["domains"]:
        if _is_saved(domain):
            yield from _of_domain(report["run"], domain, points)


def _is_saved(domain: Mapping[str, Any]) -> bool:
    """Tell whether the report says so; one with images may have failed after that ("saved, but ...")."""
    return domain["status"] == "saved" or bool(domain["images"])


def _of_unsaved(running: Running, points: Sequence[Point], noted: Set[str]) -> Iterator[str]:
    """Find complete restore points that the report does not know: of domains that failed or were skipped."""
    report = report_of(running)
    for domain in report.get("domains", ()):
        complete = [
            one
            for one in points
            if (one.run, one.uuid) == (report["run"], domain["uuid"]) and one.manifest
            if f"{one.run}.{one.uuid}.{one.attempt}" not in noted
        ]
        if len(complete) > _is_saved(domain):
            said = f"{domain['name']} is {domain['status']} ({domain['reason'] or 'without a reason'})"
            yield f"{said}, but the repository has {', '.join(map(str, complete))}"


def _of_domain(run: str, domain: Mapping[str, Any], points: Sequence[Point]) -> Iterator[str]:
    name = domain["name"]
    found = [one for one in points if (one.run, one.uuid) == (run, domain["uuid"]) and one.manifest]
    if not found:
        yield f"{name} is saved, but run {run} has no complete restore point of it"
        return
    point = max(found, key=lambda one: one.attempt)
    held = {(target, image[0]) for target, image in point.images.items()}
    for image in domain["images"]:
        if not any(target == image["target"] and _same(whole, image["restore_id"]) for target, whole in held):
            yield f"{name}: {image['target']} is not in the repository as {image['restore_id'][:8]}"
    if domain["consistency"] != point.consistency:
        yield f"{name} is {domain['consistency']} in the report, {point.consistency} in the repository"


def _same(whole: str, short: str) -> bool:
    return bool(short) and whole.startswith(short)
