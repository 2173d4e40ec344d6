"""The metrics for monitoring, in Prometheus' text format (needs python3-prometheus-client)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Callable, Optional

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from .. import __version__
from ..stored import is_future
from .copy_record import CopyRecord
from .domain_record import DomainRecord
from .health import DomainHealth, NodeHealth, node_health
from .report_types import DomainEntry, ImageEntry, Report

PREFIX = "virt_rbd_backup"

Value = Callable[[DomainHealth, DomainRecord], Optional[float]]  # None: no value


def _of_job(value: Callable[[DomainEntry], float]) -> Value:
    return lambda health, _: value(health.job) if health.job else None


def _bytes(count: Callable[[ImageEntry], int]) -> Value:
    return _of_job(lambda job: sum(map(count, job["images"])))


def _past(moment: str | None) -> float:
    """As `_seconds`, 0 for a time of the future too: until then no alert would find it too long ago."""
    return 0.0 if moment and is_future(datetime.fromisoformat(moment)) else _seconds(moment)


def _last_saved(health: DomainHealth, record: DomainRecord) -> float:
    """Return the later of two sources: proofs.json is older than all reports, but may lack this run."""
    return max(_past(record.saved), _past(health.saved["taken"] if health.saved else None))


DOMAIN_METRICS: Sequence[tuple[str, str, Value]] = (
    (
        "last_success_timestamp_seconds",
        "Time of the newest restore point made by this node, 0 if none.",
        _last_saved,
    ),
    (
        "consecutive_failures",
        "Number of its last backups on this node that failed in a row.",
        lambda health, _: health.failures,
    ),
    ("duration_seconds", "Duration of its last backup.", _of_job(lambda job: job["seconds"])),
    (
        "frozen_seconds",
        "Time that its guest was frozen or paused in its last backup.",
        _of_job(lambda job: job["frozen_seconds"]),
    ),
    (
        "read_bytes",
        "Bytes of its images that its last backup read.",
        _bytes(lambda image: image["read_bytes"]),
    ),
    (
        "skipped_bytes",
        "Bytes of its images that its last backup did not have to read: holes and unchanged data.",
        _bytes(lambda image: image["skipped_bytes"]),
    ),
    (
        "stored_bytes",
        "Bytes that its last backup added to the repository.",
        _bytes(lambda image: image["stored_bytes"]),
    ),
    (
        "leftovers",
        "Leftover snapshots of interrupted runs that its last backup found.",
        _of_job(lambda job: job["leftovers"]),
    ),
    (
        "last_verified_timestamp_seconds",
        "Time of its last full verification that passed on this node, 0 if none.",
        lambda _, record: _past(record.verified),
    ),
    (
        "last_drill_timestamp_seconds",
        "Time of its last drill that passed on this node, 0 if none.",
        lambda _, record: _past(record.drilled),
    ),
    (
        "proof_failed",
        "1 if a verification or drill on this node failed since the last one that passed, otherwise 0.",
        lambda _, record: bool(record.failure),
    ),
)

RUN_METRICS: Sequence[tuple[str, str, Callable[[Report], float]]] = (
    (
        "finished_timestamp_seconds",
        "Time when the last run of all domains ended; the other metrics of a run describe the same run.",
        lambda run: _seconds(run["finished"]),
    ),
    (
        "duration_seconds",
        "Duration of the last run.",
        lambda run: _seconds(run["finished"]) - _seconds(run["started"]),
    ),
    ("exit_code", "Exit code of the last run.", lambda run: run["exit_code"]),
    (
        "errors",
        "Errors of the last run that are no domain's own, such as an unreachable libvirt.",
        lambda run: len(run["errors"]),
    ),
)


COPY_METRICS: Sequence[tuple[str, str, Callable[[CopyRecord], float]]] = (
    (
        "finished_timestamp_seconds",
        "Time when the last copy to the second repository ended, 0 if there was none.",
        lambda copy: _seconds(copy.finished),
    ),
    (
        "failed",
        "1 if the last copy failed or left something out, otherwise 0.",
        lambda copy: bool(copy.error),
    ),
)


@dataclass(frozen=True)
class _Metrics:
    """The metrics of one file. With a `group`, it is a label of each: several files are read in one scrape.

    Without one there is no such label, as existing dashboards and alerts do not know it.
    """

    group: str
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def add(
        self, name: str, help_text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
    ) -> None:
        """Add a metric: the names of its labels, and with their values its own."""
        of_group = {"group": self.group} if self.group else {}
        gauge = Gauge(f"{PREFIX}_{name}", help_text, [*of_group, *labels], registry=self.registry)
        for own, value in values:
            given = [*of_group.values(), *own]
            (gauge.labels(*given) if given else gauge).set(value)


def exposition(
    reports: Iterable[Report],
    records: Mapping[str, DomainRecord],
    group: str = "",
    copy: CopyRecord | None = None,
) -> bytes:
    """Give the metrics. `reports` come newest first, `records` by the domains' UUIDs."""
    metrics = _Metrics(group)
    metrics.add("build_info", "Version of the program.", ["version"], [([__version__], 1)])
    node = node_health(reports)
    if node.run:
        for name, help_text, value_of in RUN_METRICS:
            metrics.add(f"run_{name}", help_text, [], [([], value_of(node.run))])
    _add_domains(node, records, metrics)
    if copy:
        for name, help_text, of_copy in COPY_METRICS:
            metrics.add(f"copy_{name}", help_text, [], [([], of_copy(copy))])
    return generate_latest(metrics.registry)


def _add_domains(node: NodeHealth, records: Mapping[str, DomainRecord], metrics: _Metrics) -> None:
    labels = ["domain", "uuid"]
    named = [([one.newest["name"], one.newest["uuid"]], one) for one in node.domains]
    for name, help_text, value_of in DOMAIN_METRICS:
        values = [(own, value_of(one, records.get(own[1], DomainRecord()))) for own, one in named]
        known = [(own, value) for own, value in values if value is not None]
        metrics.add(f"domain_{name}", help_text, labels, known)
    help_text = "1 for the consistency of its newest restore point made by this node."
    saved = [([*own, one.saved["consistency"] or ""], 1) for own, one in named if one.saved]
    metrics.add("domain_consistency", help_text, [*labels, "consistency"], saved)


def _seconds(moment: str | None) -> float:
    """Convert a time in ISO 8601 to seconds since 1970; 0 for none."""
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
