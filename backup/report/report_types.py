"""The form of a run's report, as res/report.schema.json describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, TypedDict

SCHEMA = 1  # of report.schema.json: readers of version 1 work as long as it stays


class ImageEntry(TypedDict):
    """A saved image."""

    image: str
    target: str
    size: int
    data_bytes: int
    read_bytes: int
    skipped_bytes: int
    stored_bytes: int
    seconds: float
    restore_id: str


class SkippedDisk(TypedDict):
    """A disk that is in no restore point."""

    target: str
    source: str
    reason: str


class PhaseEntry(TypedDict):
    """A phase of a job; it ends where the next one begins."""

    phase: str
    started: str


class TimelineEntry(TypedDict):
    """When a job did what."""

    lane: int
    started: str
    finished: str
    phases: Sequence[PhaseEntry]


class _EveryDomainEntry(TypedDict):
    name: str
    uuid: str
    status: str
    reason: str
    hint: str
    consistency: Optional[str]
    taken: Optional[str]
    frozen_at: Optional[str]
    frozen_seconds: float
    seconds: float
    leftovers: int
    timeline: Optional[TimelineEntry]
    last_saved: Optional[str]
    last_verified: Optional[str]
    last_drill: Optional[str]
    proof_failure: str
    images: Sequence[ImageEntry]
    not_covered: Sequence[SkippedDisk]


class DomainEntry(_EveryDomainEntry, total=False):
    """The result of one domain's job. Reports of older versions lack what is here."""

    selected: bool
    last_drill_kind: Optional[str]


class _EveryReport(TypedDict):
    schema: int
    version: str
    run: str
    host: str
    started: str
    finished: str
    exit_code: int
    named: Sequence[str]
    errors: Sequence[str]
    domains: Sequence[DomainEntry]


class Report(_EveryReport, total=False):
    """The report of a run. Times are ISO 8601 in UTC. A run without a group has no `group`.

    `all_listed`: every libvirt of the node has listed its domains. Reports of older versions, and of runs
    that ended before the domains were listed, lack it.
    """

    group: str
    all_listed: bool
