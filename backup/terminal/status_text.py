"""The tables and lines of the command status, and the same as values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from ..report.domain_record import INSTANT
from ..status.domain_status import BaseSnapshots, DomainStatus
from ..status.max_age import Verdict
from ..status.status import Status
from ..text import age_text, one_line, size_text
from .tables import table


def status_table(status: Status) -> str:
    """Give a row per domain, with its group if any has one."""
    grouped = any(one.group for one in status.domains)
    head = (
        *(("group",) if grouped else ()),
        "domain",
        "restore point (UTC)",
        "age",
        "consistency",
        "node",
        "verified",
        "drilled",
        "base snapshots",
        "now",
    )
    groups = [(one.group or "-",) if grouped else () for one in status.domains]
    rows = [(*group, *_row(one, status.now)) for group, one in zip(groups, status.domains)]
    return table(head, rows) if rows else "no domain is backed up here, and there are no restore points\n"


def _row(domain: DomainStatus, now: datetime) -> Sequence[str]:
    point, age = domain.newest, domain.age(now)
    taken = (
        (f"{point.taken:%Y-%m-%d %H:%M:%S}", age_text(age)) if point and age is not None else ("none", "-")
    )
    return (
        domain.name,
        *taken,
        *((point.consistency, point.node or "-") if point else ("-", "-")),
        _ago(domain.record.verified, now),
        _drilled(domain, now),
        _bases(domain.bases),
        domain.job or ("" if domain.selected else "not backed up by this node"),
    )


def _ago(moment: str, now: datetime) -> str:
    if not moment:
        return "never"
    try:
        return f"{age_text(max(timedelta(), now - datetime.fromisoformat(moment)))} ago"
    except (ValueError, TypeError):
        return "unknown"  # the file in STATE_DIR is damaged, or somebody has changed it


def _drilled(domain: DomainStatus, now: datetime) -> str:
    text = _ago(domain.record.drilled, now)
    if domain.record.drill_kind == INSTANT:
        text += " (instant)"
    return f"{text}; FAILED since: {domain.record.failure}" if domain.record.failure else text


def _bases(bases: BaseSnapshots | None) -> str:
    if bases is None:
        return "?"
    if not bases.number:
        return "-"
    if bases.used_bytes is None:
        return f"{bases.number}, unknown size"
    return f"{bases.number}, {'up to ' if bases.used_bytes else ''}{size_text(bases.used_bytes)}"


def verdict_text(verdict: Verdict) -> str:
    """Give one line, as Nagios and Icinga show it."""
    return f"{one_line(verdict.text)}\n"


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Give the same for programs, with what was judged."""
    judged = status_json(verdict.status) if verdict.status else {}
    return {"exit_code": verdict.exit_code, "text": verdict.text, **judged}


def status_json(status: Status) -> dict[str, Any]:
    """Give all domains for programs. Times are ISO 8601 in UTC, ages in seconds, sizes in bytes.

    `base_snapshots` is None if the clusters were not asked; a size is None if it is not known.
    """
    return {
        "now": status.now.isoformat(timespec="seconds"),
        "complete": status.complete,
        **({"missing": list(status.missing)} if status.missing else {}),
        "domains": [_domain_json(one, status.now) for one in status.domains],
    }


def _domain_json(domain: DomainStatus, now: datetime) -> dict[str, Any]:
    point, age, bases = domain.newest, domain.age(now), domain.bases
    return {
        "name": domain.name,
        "uuid": domain.uuid,
        "selected": domain.selected,
        "run": point.id.run if point else None,
        "taken": point.taken.isoformat() if point else None,
        "age": age.total_seconds() if age is not None else None,
        "consistency": point.consistency if point else None,
        "node": point.node if point else None,
        "verified": domain.record.verified or None,
        "drilled": domain.record.drilled or None,
        "drill_kind": domain.record.drill_kind or None,
        "proof_failure": domain.record.failure,
        "base_snapshots": {"number": bases.number, "used_bytes": bases.used_bytes} if bases else None,
        "job": domain.job,
        **({"group": domain.group} if domain.group else {}),
    }
