"""Removes the restore points that KEEP_LAST and KEEP_WITHIN_DAYS do not keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Optional

from ..errors import BackupError, ConfigError, Interrupted
from ..job.failed_points import FailedPoints
from ..job_result import JobResult
from ..model import Level
from ..protocols import Output, Reporter
from ..restore_point.find import points_of_domains
from ..restore_point.retention import Retention
from ..settings import Settings
from ..stored import StoredPoint
from ..system.time_limit import CheckStop


@dataclass(frozen=True)
class Pruned:
    """A restore point that is not kept. `problem`: why it is still there, None if it is not."""

    point: StoredPoint
    problem: Optional[BackupError] = None

    @property
    def failed(self) -> bool:
        """Whether it should have been removed: one that is in use is removed the next time."""
        return self.problem is not None and not self.problem.transient


def prune(
    settings: Settings,
    output: Output,
    reporter: Reporter,
    check_stop: CheckStop,
    names: Sequence[str] = (),
    dry_run: bool = False,
    run: str = "",
) -> Sequence[Pruned]:
    """Remove what is not kept of the domains with these names, UUIDs or patterns, without names of all.

    `run` is the run that has just saved them, "" without one: its own stay, even if by a clock that is behind
    they are the oldest. None is removed while all of other runs seem to be too old: that is a warning.
    Raises ConfigError if the output has another retention; BackupError if the restore points cannot be
    listed; the reason to stop.
    """
    require_pruning(settings, output)
    listed = output.restore_points(check_stop)
    retention, now = Retention(settings.keep_last, settings.keep_within_days), datetime.now(timezone.utc)
    failed = FailedPoints(settings.state_dir).all()  # they do not count; the next run removes them
    points = [point for point in points_of_domains(listed, names) if point.id not in failed]
    expired = [point for point in retention.expired(points, now) if point.id.run != run]
    others = [point for point in listed if point.id.run != run]
    if not all(point.removed for point in expired) and retention.doubts_clock(others, now):
        reporter.message(Level.WARNING, "", _doubt(settings, now))
        expired = [point for point in expired if point.removed]
    if dry_run:
        return [Pruned(point) for point in expired]
    return [_removed(point, output, reporter, check_stop) for point in expired]


def prune_saved(
    run: str,
    results: Sequence[JobResult],
    settings: Settings,
    output: Output,
    reporter: Reporter,
    check_stop: CheckStop,
) -> Sequence[str]:
    """Prune the domains that the run has saved; return what failed.

    A request to stop ends it early: what the run has saved counts all the same.
    """
    saved = [one.uuid for one in results if one.images]
    limited = Retention(settings.keep_last, settings.keep_within_days).limited
    if not (saved and output.prunes and limited):
        return ()
    try:
        pruned = prune(settings, output, reporter, check_stop, saved, run=run)
    except BackupError as error:
        if isinstance(error, Interrupted) or _is_stopping(check_stop):
            reporter.message(
                Level.WARNING, "", "stopping: the next run prunes the rest of the restore points"
            )
            return ()
        reporter.message(Level.ERROR, "", f"restore points are not pruned: {error}")
        return [f"restore points are not pruned: {error.message}"]
    return [f"{one.point.domain}: {one.problem.message}" for one in pruned if one.failed and one.problem]


def _is_stopping(check_stop: CheckStop) -> bool:
    try:
        check_stop()
    except Interrupted:
        return True
    return False


def require_pruning(settings: Settings, output: Output) -> None:
    """Raise ConfigError unless `prune` can be used with the output."""
    if errors := output.configuration_errors():
        raise ConfigError(errors)
    if not output.prunes:
        message = f'prune is not for OUTPUT = "{settings.output}", which restic itself prunes'
        raise ConfigError([BackupError(message, "restic forget --prune, see res/docs/how-it-works.md")])


def _doubt(settings: Settings, now: datetime) -> str:
    limit = f"{settings.keep_within_days} days (KEEP_WITHIN_DAYS)"
    clock = f"(now {now:%Y-%m-%d %H:%M} UTC)"
    return (
        f"no restore point is removed: by the clock {clock} all earlier ones are older than {limit} "
        "(hint: is the clock right? then the next run removes them)"
    )


def _removed(point: StoredPoint, output: Output, reporter: Reporter, check_stop: CheckStop) -> Pruned:
    check_stop()
    try:
        output.withdraw([point.id], check_stop)
    except BackupError as error:
        check_stop()
        level = Level.INFO if error.transient else Level.ERROR
        reporter.message(level, point.domain, f"restore point of run {point.id.run} not removed: {error}")
        return Pruned(point, error)
    text = f"restore point of {point.taken:%Y-%m-%d %H:%M:%S} UTC, run {point.id.run}, removed"
    why = "its removal was interrupted" if point.removed else "KEEP_LAST, KEEP_WITHIN_DAYS"
    reporter.message(Level.INFO, point.domain, f"{text} ({why})")
    return Pruned(point)
