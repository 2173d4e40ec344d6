"""The result of a run, as a value and as JSON."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Optional

from .. import __version__
from ..exit_codes import FAILED, NOTHING_DONE, SUCCESS, interrupted
from ..job_result import JobResult, Status, Timeline
from ..selection import ON_OVERLAYS
from ..stored import SavedImage
from .domain_record import DomainRecord
from .report_types import SCHEMA, DomainEntry, ImageEntry, Report, TimelineEntry


def new_run_id() -> str:
    """Return an id that sorts by time: UTC, and random letters in case two nodes start in one second."""
    letters = "".join(random.choices(string.ascii_lowercase, k=4))
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{letters}"


@dataclass(frozen=True)
class RunResult:
    """A run that has ended; `signal_number` is the signal that ended it, 0 for none.

    `not_started` is the exit code of one that did not even begin, 0 if it did. `named` are the domains, or
    patterns, from the command line: no others were considered. `group` is "" for
    settings of no group. `all_listed`: every libvirt has listed its domains; None if none was asked.
    """

    run: str
    host: str
    started: datetime
    finished: datetime
    results: Sequence[JobResult]
    signal_number: int = 0
    nothing_done: bool = False
    not_started: int = 0
    named: Sequence[str] = ()
    errors: Sequence[str] = ()  # of the run as a whole, such as an unreachable libvirt
    not_selected: Sequence[JobResult] = ()
    verified: bool = False  # each saved image was compared with its snapshot
    group: str = ""
    all_listed: Optional[bool] = None

    @property
    def exit_code(self) -> int:
        if self.not_started:
            return self.not_started
        if self.signal_number:
            return interrupted(self.signal_number)
        if self.nothing_done:
            return NOTHING_DONE
        failed = any(result.status is Status.FAILED for result in self.results)
        return FAILED if failed or self.errors else SUCCESS

    @property
    def summary(self) -> str:
        """The number of domains per result, such as "3 saved, 1 failed"."""
        if self.not_started:
            return f"not started (exit code {self.not_started})"
        if self.nothing_done:
            return "nothing could be done"
        counts = [(sum(one.status is status for one in self.results), status.value) for status in Status]
        return ", ".join(f"{count} {status}" for count, status in counts if count) or "nothing to do"


def report_json(result: RunResult, records: Mapping[str, DomainRecord]) -> Report:
    """Give the report as res/report.schema.json has it. `records` are by the domains' UUIDs."""
    report: Report = {
        "schema": SCHEMA,
        "version": __version__,
        "run": result.run,
        "host": result.host,
        "started": _moment(result.started),
        "finished": _moment(result.finished),
        "exit_code": result.exit_code,
        "named": list(result.named),
        "errors": list(result.errors),
        "domains": [
            _domain(one, records.get(one.uuid, DomainRecord()), selected or one.reason == ON_OVERLAYS)
            for selected, ones in ((True, result.results), (False, result.not_selected))
            for one in ones
        ],
    }
    if result.group:
        report["group"] = result.group
    if result.all_listed is not None:
        report["all_listed"] = result.all_listed
    return report


def _moment(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _domain(one: JobResult, record: DomainRecord, selected: bool) -> DomainEntry:
    return {
        "name": one.name,
        "uuid": one.uuid,
        "selected": selected,
        "status": one.status.value,
        "reason": one.reason,
        "hint": one.hint,
        "consistency": one.consistency.value if one.consistency else None,
        "taken": _moment(one.taken) if one.taken else None,
        "frozen_at": _moment(one.frozen_at) if one.frozen_at else None,
        "frozen_seconds": round(one.frozen_seconds, 3),
        "seconds": round(one.seconds, 3),
        "leftovers": one.leftovers,
        "timeline": _timeline(one.timeline) if one.timeline else None,
        "last_saved": record.saved or None,
        "last_verified": record.verified or None,
        "last_drill": record.drilled or None,
        "last_drill_kind": record.drill_kind or None,
        "proof_failure": record.failure,
        "images": [_image(image) for image in one.images],
        "not_covered": [
            {"target": disk.target, "source": disk.source, "reason": disk.skipped}
            for disk in one.skipped_disks
        ],
    }


def _timeline(timeline: Timeline) -> TimelineEntry:
    return {
        "lane": timeline.lane,
        "started": _moment(timeline.started),
        "finished": _moment(timeline.finished),
        "phases": [{"phase": phase.value, "started": _moment(began)} for phase, began in timeline.phases],
    }


def _image(image: SavedImage) -> ImageEntry:
    return {
        "image": image.image,
        "target": image.target,
        "size": image.size,
        "data_bytes": image.data_bytes,
        "read_bytes": image.read_bytes,
        "skipped_bytes": image.size - image.read_bytes,
        "stored_bytes": image.stored_bytes,
        "seconds": round(image.seconds, 3),
        "restore_id": image.restore_id,
    }
