"""The names that restore points have within their domain: RUN, or RUN.ATTEMPT after a retry."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Optional

from backup.stored import PointId

_NAME = re.compile(r"(?P<run>[0-9]{8}T[0-9]{6}Z-[a-z]+)(?:\.(?P<attempt>[0-9]+))?")


def point_name(point: PointId) -> str:
    return point.run if point.attempt == 1 else f"{point.run}.{point.attempt}"


def point_id(uuid: str, name: str) -> Optional[PointId]:
    """Return the restore point of a domain that has a name, None if the name is not one of ours."""
    found = _NAME.fullmatch(name)
    return PointId(found["run"], uuid, int(found["attempt"] or 1)) if found else None


def began(name: str) -> datetime:
    """Return when the run began whose restore point has such a name."""
    return datetime.strptime(name[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
