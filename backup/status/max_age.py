"""Judges whether each domain has a restore point that is new enough, as a check for Nagios or Icinga."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Optional

from ..errors import BackupError, Interrupted
from ..exit_codes import CRITICAL, OK, UNKNOWN
from ..text import age_text
from .domain_status import DomainStatus
from .status import Search, Status


@dataclass(frozen=True)
class Verdict:
    """The exit code, what it means in one line, and what was judged; `status` is None if nothing could be."""

    exit_code: int
    text: str
    status: Optional[Status] = None


def judge(search: Search, names: Sequence[str], limit: timedelta) -> Verdict:
    """Judge the domains with these names; without names those that this node backs up.

    Others are not: one that is gone has old restore points for as long as they are kept. Raises the reason
    to stop.
    """
    try:
        status = search.status(names, ask_clusters=False)
    except Interrupted:
        raise
    except BackupError as error:
        return Verdict(UNKNOWN, f"UNKNOWN: {error}")
    judged = [one for one in status.domains if one.selected or names]
    return _verdict(replace(status, domains=judged), limit)


def _verdict(status: Status, limit: timedelta) -> Verdict:
    late = [one for one in status.domains if one.is_late(status.now, limit)]
    number, within = len(status.domains), f"restore point of the last {age_text(limit)}"
    if late:
        which = ", ".join(f"{one.shown} ({_age(one, status)})" for one in late)
        return Verdict(
            CRITICAL, f"CRITICAL: {len(late)} of {number} domains have no {within}: {which}", status
        )
    if status.missing:
        text = f"UNKNOWN: no answer for {', '.join(status.missing)}"
        return Verdict(UNKNOWN, f"{text}; {number} domains of other groups have a {within}", status)
    if not status.complete:
        text = "UNKNOWN: not every libvirt of this node answered"
        return Verdict(UNKNOWN, f"{text}; {number} domains known otherwise have a {within}", status)
    if not number:
        return Verdict(OK, "OK: this node backs up no domain", status)
    return Verdict(OK, f"OK: {number} of {number} domains have a {within}", status)


def _age(domain: DomainStatus, status: Status) -> str:
    age = domain.age(status.now)
    if domain.is_from_future(status.now):
        return "from the future: a clock was wrong"
    return age_text(age) if age is not None else "none"
