"""A look at the output at the end of a run: whether all that was saved is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Callable

from ..errors import BackupError
from ..job_result import JobResult, Status
from ..model import Level
from ..protocols import Output, Reporter
from ..restore_point.find import missing
from ..stored import PointId, StoredPoint


def confirmed(
    results: Sequence[JobResult],
    run: str,
    output: Output,
    reporter: Reporter,
    check_stop: Callable[[], None],
) -> Sequence[JobResult]:
    """List once what the output holds of the run; fail the domains of which it has not all.

    Somebody may have removed what no manifest counted yet, though it was about to, or the repository itself
    was gone for a while. What is left of such restore points is removed: they would be listed as complete.
    """
    if not any(result.status is Status.SAVED for result in results):
        return results
    try:
        held = [point for point in output.restore_points(check_stop) if point.id.run == run]
    except BackupError as error:
        text = f"cannot confirm that what was saved is in the output: {error}"
        reporter.message(Level.WARNING, "", text)
        return results
    after = [_confirmed_in(held, run, result, reporter) for result in results]
    gone = {new.uuid for new, old in zip(after, results) if new is not old}
    _withdraw([point.id for point in held if point.id.uuid in gone], output, reporter, check_stop)
    return after


def _confirmed_in(held: Sequence[StoredPoint], run: str, result: JobResult, reporter: Reporter) -> JobResult:
    """Give the result as it is, or failed if the output lacks something of it."""
    lacking = missing(held, run, result) if result.status is Status.SAVED else ()
    if not lacking:
        return result
    reason = f"the output no longer has all that was saved: {', '.join(lacking)}"
    hint = "who removes or moves what is in the repository while backups run? back it up again"
    reporter.message(Level.ERROR, result.name, f"failed: {reason} (hint: {hint})")
    return replace(result, status=Status.FAILED, reason=reason, hint=hint, images=())


def _withdraw(
    points: Sequence[PointId], output: Output, reporter: Reporter, check_stop: Callable[[], None]
) -> None:
    try:
        if points:
            output.withdraw(points, check_stop)
    except BackupError as error:
        text = f"restore points of this run that lack images may still be in the output: {error}"
        reporter.message(Level.WARNING, "", text)
