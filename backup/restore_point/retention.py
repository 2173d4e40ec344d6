"""Decides which restore points are kept: KEEP_LAST and KEEP_WITHIN_DAYS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..stored import StoredPoint


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

        Never a domain's newest complete one. Incomplete ones, whose run may be active, do not count.
        """
        of_domains: dict[str, list[StoredPoint]] = {}
        for point in points:
            if point.manifest_id:
                of_domains.setdefault(point.id.uuid, []).append(point)
        gone = {point.id for complete in of_domains.values() for point in self._expired(complete, now)}
        return [point for point in points if point.id in gone]

    def _expired(self, complete: Sequence[StoredPoint], now: datetime) -> Sequence[StoredPoint]:
        if not self.limited:
            return ()
        older = complete[: -max(self.last, 1)]
        if not self.within_days:
            return older
        oldest = now - timedelta(days=self.within_days)
        return [point for point in older if point.taken < oldest]
