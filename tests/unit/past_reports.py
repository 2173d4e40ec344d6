"""Reports as a month of nightly runs leaves them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from backup.job_result import JobResult, Phase, Status, Timeline
from backup.model import Consistency, Disk
from backup.report.domain_record import DomainRecord
from backup.report.history import History
from backup.report.run_report import RunResult, report_json
from backup.stored import SavedImage

from .samples import LAYOUT

MIB = 1 << 20
NOW = datetime(2026, 11, 25, 6, 30, tzinfo=timezone.utc)
WORKERS = 3
KINDS = ("web", "db", "mail", "build", "cache", "ldap", "git", "shop", "proxy", "monitoring-and-alerting-")
FAILURES = (
    (
        "cannot read 4194304 bytes at 1073741824 of vms/{}-data: connection timed out",
        "check the cluster: ceph status",
    ),
    ("no answer within 60 s", "check that libvirtd runs: systemctl status libvirtd"),
    ("restic backup failed: no space left on device", "df on the repository's host; restic prune"),
)


def names(number: int) -> Sequence[str]:
    return [f"{KINDS[i % len(KINDS)]}{i // len(KINDS) + 1:02}" for i in range(number)]


def night(domains: Sequence[str], days_ago: int = 0, failing: float = 0.0, named: Sequence[str] = ()) -> Any:
    """Give the report of a run that began at two o'clock; some of its domains fail."""
    chance = random.Random(days_ago)
    begun = NOW.replace(hour=2, minute=0) - timedelta(days=days_ago)
    free = [begun + timedelta(seconds=0.4)] * WORKERS
    results = []
    for name in domains:
        lane = free.index(min(free))
        result = _job(name, lane + 1, free[lane], chance, failing)
        assert result.timeline
        free[lane] = result.timeline.finished
        results.append(result)
    run = f"{begun:%Y%m%dT%H%M%SZ}-abcd"
    whole = RunResult(run, "node1", begun, max(free) + timedelta(seconds=1), results, named=named)
    saved = (begun + timedelta(hours=0.2)).isoformat(timespec="seconds")
    records = {one.uuid: DomainRecord(saved=saved, verified=saved) for one in results}
    return json.loads(json.dumps(report_json(whole, records)))


def _job(name: str, lane: int, begun: datetime, chance: random.Random, failing: float) -> JobResult:
    failed = chance.random() < failing
    stream = begun + timedelta(seconds=chance.uniform(2, 4))
    seconds = chance.lognormvariate(4, 1)
    end = stream + timedelta(seconds=seconds / 3 if failed else seconds)
    phases = (
        (Phase.PREPARE, begun + timedelta(seconds=0.2)),
        (Phase.SNAPSHOT, stream - timedelta(seconds=1.2)),
        (Phase.STREAM, stream),
        (Phase.TIDY, end),
    )
    end += timedelta(seconds=1)
    timeline = Timeline(lane, begun, end, phases)
    uuid = f"uuid-of-{name}"
    if failed:
        what, hint = chance.choice(FAILURES)
        return JobResult(
            name, uuid, Status.FAILED, what.format(name), hint, seconds=seconds / 3, timeline=timeline
        )
    data = int(seconds * 180 * MIB)
    image = SavedImage(
        "vda", f"vms/{name}", 3 * data, data, data // 30, seconds, "0123abcd", LAYOUT, read_bytes=data // 2
    )
    likely = [Consistency.FILESYSTEM] * 12 + [Consistency.PAUSED, Consistency.OFFLINE, Consistency.CRASH]
    consistency = chance.choice(likely)
    frozen = chance.uniform(0.2, 0.9) if consistency is not Consistency.OFFLINE else 0.0
    return JobResult(
        name,
        uuid,
        Status.SAVED,
        consistency=consistency,
        frozen_seconds=frozen,
        frozen_at=stream - timedelta(seconds=1) if frozen else None,
        taken=stream - timedelta(seconds=0.5),
        seconds=(end - begun).total_seconds(),
        images=(image,),
        skipped_disks=(Disk("sda", "", skipped="an empty drive"),) if name.startswith("db") else (),
        timeline=timeline,
    )


def keep(state_dir: Path, *reports: Any) -> History:
    """Give a history with these reports."""
    history = History(str(state_dir), 36500)
    for report in reports:
        history.store(report)
    return history
