"""The check at the end of a run that the repository holds all images that the run saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Callable

from ..errors import BackupError
from ..job.failed_points import FailedPoints
from ..job_result import JobResult, Status
from ..model import Level
from ..protocols import Output, Reporter
from ..restore_point.find import missing
from ..restore_point.known_points import remember
from ..stored import PointId, StoredPoint


def confirmed(
    results: Sequence[JobResult],
    run: str,
    output: Output,
    reporter: Reporter,
    state_dir: str,
    failed: set[PointId],
    check_stop: Callable[[], None],
) -> Sequence[JobResult]:
    """List the run's restore points in the repository; fail the domains with missing images.

    Another program may have removed images before their manifest was written, or the repository was replaced
    for a while. Restore points with missing images look complete: they are noted, and added to `failed`, so
    that this run or a later one removes them.
    """
    if not any(result.status is Status.SAVED for result in results):
        return results
    try:
        listed = output.restore_points(check_stop)
    except BackupError as error:
        text = f"cannot confirm that the repository holds all saved images: {error}"
        reporter.message(Level.WARNING, "", text)
        return results
    remember(listed, state_dir)
    points = [point for point in listed if point.id.run == run]
    after = [_confirmed_in(points, run, result, reporter) for result in results]
    gone = {new.uuid for new, old in zip(after, results) if new is not old}
    for point in points:
        if point.id.uuid in gone:
            FailedPoints(state_dir).add(point.id)
            failed.add(point.id)
    return after


def _confirmed_in(
    points: Sequence[StoredPoint], run: str, result: JobResult, reporter: Reporter
) -> JobResult:
    """Return the result as it is, or failed if the repository lacks an image of it."""
    lacking = missing(points, run, result) if result.status is Status.SAVED else ()
    if not lacking:
        return result
    reason = f"the repository no longer has all saved images, missing: {', '.join(lacking)}"
    hint = "does another program remove snapshots from the repository during backups? back it up again"
    reporter.message(Level.ERROR, result.name, f"failed: {reason} (hint: {hint})")
    nothing = replace(result, images=(), consistency=None, taken=None)  # as no restore point counts
    return replace(nothing, status=Status.FAILED, reason=reason, hint=hint, withdraw=True)
