"""What monitoring wants to know, in Prometheus' text format (needs python3-prometheus-client)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Callable, Optional

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from .. import __version__
from .domain_record import Proof
from .health import Overview, Standing, overview
from .report_types import DomainEntry, ImageEntry, Report

PREFIX = "virt_rbd_backup"

Of = Callable[[Standing, Proof], Optional[float]]  # None: there is nothing to tell


def _of_job(value: Callable[[DomainEntry], float]) -> Of:
    return lambda standing, _: value(standing.job) if standing.job else None


def _bytes(count: Callable[[ImageEntry], int]) -> Of:
    return _of_job(lambda job: sum(map(count, job["images"])))


def _last_saved(standing: Standing, proof: Proof) -> float:
    """Whichever knows: proofs.json remembers for longer, and a STATE_DIR that is full not even this run."""
    return max(_seconds(proof.saved), _seconds(standing.saved["taken"] if standing.saved else None))


OF_DOMAINS: Sequence[tuple[str, str, Of]] = (
    (
        "last_success_timestamp_seconds",
        "Of when the newest restore point is that this node made; 0: it never did.",
        _last_saved,
    ),
    (
        "consecutive_failures",
        "How many of its last backups on this node have failed in a row.",
        lambda standing, _: standing.failures,
    ),
    ("duration_seconds", "How long its last backup took.", _of_job(lambda job: job["seconds"])),
    (
        "frozen_seconds",
        "How long its guest was frozen or paused in its last backup.",
        _of_job(lambda job: job["frozen_seconds"]),
    ),
    ("read_bytes", "What its last backup read of its images.", _bytes(lambda image: image["read_bytes"])),
    (
        "skipped_bytes",
        "What its last backup did not have to read: holes, and what had not changed.",
        _bytes(lambda image: image["skipped_bytes"]),
    ),
    (
        "stored_bytes",
        "What the repository grew by in its last backup.",
        _bytes(lambda image: image["stored_bytes"]),
    ),
    (
        "leftovers",
        "Snapshots of killed runs that its last backup found, to be removed.",
        _of_job(lambda job: job["leftovers"]),
    ),
    (
        "last_verified_timestamp_seconds",
        "When all of a restore point was last verified on this node; 0: never.",
        lambda _, proof: _seconds(proof.verified),
    ),
    (
        "last_drill_timestamp_seconds",
        "When a drill on this node last went well; 0: never.",
        lambda _, proof: _seconds(proof.drilled),
    ),
    (
        "proof_failed",
        "Whether a verification or a drill on this node has failed since it last succeeded.",
        lambda _, proof: bool(proof.failure),
    ),
)

OF_RUN: Sequence[tuple[str, str, Callable[[Report], float]]] = (
    (
        "finished_timestamp_seconds",
        "When the last run ended that was one of all domains; the other metrics of a run are of the same.",
        lambda run: _seconds(run["finished"]),
    ),
    (
        "duration_seconds",
        "How long the last run took.",
        lambda run: _seconds(run["finished"]) - _seconds(run["started"]),
    ),
    ("exit_code", "The exit code of the last run.", lambda run: run["exit_code"]),
    (
        "errors",
        "What kept the last run from looking at domains, such as libvirts out of reach.",
        lambda run: len(run["errors"]),
    ),
)


def exposition(reports: Iterable[Report], proofs: Mapping[str, Proof]) -> bytes:
    """Give the text. `reports` come newest first, `proofs` by the domains' UUIDs."""
    registry = CollectorRegistry()
    build = Gauge(f"{PREFIX}_build_info", "The program's version.", ["version"], registry=registry)
    build.labels(__version__).set(1)
    seen = overview(reports)
    if seen.run:
        for name, meaning, of_run in OF_RUN:
            Gauge(f"{PREFIX}_run_{name}", meaning, registry=registry).set(of_run(seen.run))
    _add_domains(seen, proofs, registry)
    return generate_latest(registry)


def _add_domains(seen: Overview, proofs: Mapping[str, Proof], registry: CollectorRegistry) -> None:
    labels = ["domain", "uuid"]
    for name, meaning, of_domain in OF_DOMAINS:
        gauge = Gauge(f"{PREFIX}_domain_{name}", meaning, labels, registry=registry)
        for one in seen.domains:
            uuid = one.newest["uuid"]
            value = of_domain(one, proofs.get(uuid, Proof()))
            if value is not None:
                gauge.labels(one.newest["name"], uuid).set(value)
    meaning = "1 for the consistency of its newest restore point."
    gauge = Gauge(f"{PREFIX}_domain_consistency", meaning, [*labels, "consistency"], registry=registry)
    for one in seen.domains:
        if one.saved:
            gauge.labels(one.newest["name"], one.newest["uuid"], one.saved["consistency"]).set(1)


def _seconds(moment: str | None) -> float:
    """Give a moment in ISO 8601 as seconds since 1970; 0 for none."""
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
