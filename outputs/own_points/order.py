"""The order of restore points, and the newest one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Optional

from backup.stored import StoredPoint, is_future


def in_order(points: Iterable[StoredPoint]) -> Sequence[StoredPoint]:
    """Return them oldest first, those of the future before them."""
    return sorted(points, key=lambda one: (not is_future(one.taken), one.taken))


def last_saved(points: Iterable[StoredPoint]) -> Optional[datetime]:
    """Return the time of the newest complete restore point; none of the future."""
    times = (one.taken for one in points if one.manifest_id and not is_future(one.taken))
    return max(times, default=None)
