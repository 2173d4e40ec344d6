"""The check at the end of a run that the repository holds all images that the run saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Callable

from ..errors import BackupError
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
    check_stop: Callable[[], None],
) -> Sequence[JobResult]:
    """List the run's restore points in the repository; fail the domains with missing images.

    Another program may have removed images before their manifest was written, or the repository was replaced
    for a while. Restore points with missing images are removed, as they would be listed as complete.
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
    _withdraw([point.id for point in points if point.id.uuid in gone], output, reporter, check_stop)
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
    return replace(result, status=Status.FAILED, reason=reason, hint=hint, images=())


def _withdraw(
    points: Sequence[PointId], output: Output, reporter: Reporter, check_stop: Callable[[], None]
) -> None:
    try:
        if points:
            output.withdraw(points, check_stop)
    except BackupError as error:
        text = f"restore points of this run with missing images may still be in the repository: {error}"
        reporter.message(Level.WARNING, "", text)
