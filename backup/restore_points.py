"""The restore points that an output holds: which of them are meant, and how they are shown."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from .console import table
from .errors import BackupError, ConfigError
from .model import HeldPoint
from .units import size_text


def of_domains(points: Sequence[HeldPoint], names: Sequence[str]) -> Sequence[HeldPoint]:
    """Give the restore points of the domains with these names, UUIDs or patterns; of all if none is named.

    Raises ConfigError for names of which there is none.
    """
    unknown = [name for name in names if not any(_matches(point, name) for point in points)]
    if unknown:
        raise ConfigError([_nothing_of(name, points) for name in unknown])
    return [point for point in points if not names or any(_matches(point, name) for name in names)]


def points_table(points: Sequence[HeldPoint]) -> str:
    """Give a row per restore point, the oldest first, and one per disk."""
    head = ("domain", "taken (UTC)", "run", "consistency", "node", "disk", "image", "size", "")
    rows = []
    for point in points:
        complete = "" if point.manifest_id else "incomplete: does not count"
        taken = f"{point.taken:%Y-%m-%d %H:%M:%S}"
        cells: tuple[str, ...] = (point.domain, taken, point.id.run, point.consistency, point.node or "-")
        for image in point.images or [None]:
            disk = (image.target, image.image, _size(image.size)) if image else ("-", "-", "-")
            rows.append((*cells, *disk, complete))
            cells, complete = ("",) * len(cells), ""
    return table(head, rows) if rows else "no restore points\n"


def points_json(points: Sequence[HeldPoint]) -> list[dict[str, object]]:
    """Give the same for programs. Sizes in bytes, None where the manifest alone tells."""
    return [
        {
            "run": point.id.run,
            "uuid": point.id.uuid,
            "domain": point.domain,
            "taken": point.taken.isoformat(),
            "consistency": point.consistency,
            "node": point.node,
            "complete": bool(point.manifest_id),
            "manifest_id": point.manifest_id,
            "images": [
                {
                    "target": image.target,
                    "image": image.image,
                    "size": image.size,
                    "restore_id": image.restore_id,
                }
                for image in point.images
            ],
        }
        for point in points
    ]


def _matches(point: HeldPoint, name: str) -> bool:
    return point.id.uuid == name or fnmatchcase(point.domain, name)


def _nothing_of(name: str, points: Sequence[HeldPoint]) -> BackupError:
    domains = sorted({point.domain for point in points})
    near = difflib.get_close_matches(name, domains, n=1)
    hint = f"did you mean {near[0]}?" if near else "see `main.py restore-points` for all that there are"
    return BackupError(f"there is no restore point of a domain {name!r}", hint)


def _size(size: int | None) -> str:
    return "-" if size is None else size_text(size)
