"""Decides which restore points are kept: KEEP_LAST and KEEP_WITHIN_DAYS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..stored import CLOCK_ERROR, StoredPoint

RECENT = 10  # runs between which the pauses are compared


@dataclass(frozen=True)
class Retention:
    """How many of a domain's newest restore points are kept, and up to which age in days; 0: no limit.

    With both limits a restore point is kept if one of them keeps it.
    """

    last: int
    within_days: int

    @property
    def limited(self) -> bool:
        return bool(self.last or self.within_days)

    def expired(self, points: Sequence[StoredPoint], now: datetime) -> Sequence[StoredPoint]:
        """Return those of the points that are not kept, of whatever domains; `points` are oldest first.

        Never a domain's newest complete one. Incomplete ones, whose run may be active, do not count. Those
        whose removal was interrupted go in any case.
        """
        of_domains: dict[str, list[StoredPoint]] = {}
        for point in points:
            if point.manifest_id:
                of_domains.setdefault(point.id.uuid, []).append(point)
        gone = {point.id for complete in of_domains.values() for point in self._expired(complete, now)}
        return [point for point in points if point.id in gone or point.removed]

    def doubts_clock(self, points: Sequence[StoredPoint], now: datetime) -> bool:
        """Return whether all `points`, those of other runs in the whole repository, seem to be too old.

        So it looks by a clock that is ahead; or if nothing was saved for long, and nothing needs to go then.
        Where runs are always further apart than `within_days`, recent pauses between them were as long.
        """
        runs = {one.id.run: one.taken for one in points if one.taken < now + CLOCK_ERROR}
        times = sorted(runs.values())[-RECENT:]
        if not self.within_days or len(times) < 2:
            return False
        pause = now - times[-1]
        longest = max(after - before for before, after in zip(times, times[1:]))
        return pause > max(timedelta(days=self.within_days), 2 * longest)

    def _expired(self, complete: Sequence[StoredPoint], now: datetime) -> Sequence[StoredPoint]:
        if not self.limited:
            return ()
        older = complete[: -max(self.last, 1)]
        if not self.within_days:
            return older
        oldest = now - timedelta(days=self.within_days)
        return [point for point in older if point.taken < oldest]
