"""Finds restore points among those that an output lists: by domain, time or run."""

from __future__ import annotations

import difflib
from collections.abc import Container, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone

from ..command import COMMAND
from ..errors import BackupError, ConfigError
from ..job_result import JobResult
from ..selection import has_name
from ..stored import SavedDomain, SavedImage, StoredImage, StoredPoint

# The accepted formats of a time, each with the length of the period that it denotes.
TIME_FORMS = {
    "%Y-%m-%d": timedelta(days=1),
    "%Y-%m-%dT%H:%M": timedelta(minutes=1),
    "%Y-%m-%d %H:%M": timedelta(minutes=1),
    "%Y-%m-%dT%H:%M:%S": timedelta(seconds=1),
    "%Y-%m-%d %H:%M:%S": timedelta(seconds=1),
    "%Y-%m-%dT%H:%M:%SZ": timedelta(seconds=1),
}


def points_of_domains(points: Sequence[StoredPoint], names: Sequence[str]) -> Sequence[StoredPoint]:
    """Return the restore points of the domains with these names, UUIDs or patterns, without names all.

    Raises ConfigError for names without a restore point.
    """
    exact = {text for point in points for text in (point.domain, point.id.uuid)}
    unknown = [name for name in names if not any(_has_name(point, name, exact) for point in points)]
    if unknown:
        raise ConfigError([_no_restore_point(name, points) for name in unknown])
    return [point for point in points if not names or any(_has_name(point, name, exact) for name in names)]


def find_point(points: Sequence[StoredPoint], name: str, at: str) -> StoredPoint:
    """Return the restore point of the domain, given by name or UUID, that `at` selects.

    "latest" selects the newest complete one, a run's id (or its beginning) that run's, a time in UTC
    (2026-11-25, 2026-11-25T03:00) the newest up to that time. Raises ConfigError.
    """
    candidates = [point for point in points if name in (point.domain, point.id.uuid)]
    if not candidates:
        raise ConfigError([_no_restore_point(name, points)])
    _require_one_domain(candidates, name)
    complete = [point for point in candidates if point.manifest_id]
    end = _end_of_time(at)
    if at == "latest":
        found = complete
    elif end:
        found = [point for point in complete if point.taken < end]
    else:
        by_run = [point for point in candidates if point.id.run.startswith(at)]
        found = [point for point in by_run if point.manifest_id] or by_run  # a run may have several attempts
    if not found:
        message = f"no complete restore point of {name} matches --at {at!r}"
        raise ConfigError([BackupError(message, f"`{COMMAND} restore-points {name}` lists them")])
    newest = found[-1]
    if not newest.manifest_id:
        message = f"the restore point of {name} from run {newest.id.run} is incomplete: it has no manifest"
        raise ConfigError([BackupError(message, "its run failed or is still active; try --at latest")])
    return newest


def with_current_ids(saved: SavedDomain, point: StoredPoint) -> SavedDomain:
    """Return the manifest's content with the output's current ids of its images; see `current_images`."""
    return replace(saved, images=current_images(saved.images, point))


def current_images(images: Sequence[SavedImage], point: StoredPoint) -> tuple[SavedImage, ...]:
    """Return the images with the ids that the output lists now. Raises BackupError if one is missing."""
    return tuple(_current(image, point) if image.size else image for image in images)


def missing(points: Sequence[StoredPoint], run: str, result: JobResult) -> Sequence[str]:
    """Return what the listed points lack of a domain that a run saved: the manifest, or images.

    () if nothing is missing.
    """
    complete = [one for one in points if one.manifest_id and one.id[:2] == (run, result.uuid)]
    if not complete:
        return ("the manifest",)
    stored = [image for one in complete for image in one.images]
    gone = [one for one in result.images if one.size and not any(same_image(one, other) for other in stored)]
    return tuple(f"{one.target} ({one.image})" for one in gone)


def same_image(image: SavedImage, stored: StoredImage) -> bool:
    """Return whether the stored image is the saved one.

    A manifest may have only the beginning of its id, or none: then it is stored together with its images.
    """
    if not image.restore_id:
        return stored.target == image.target
    return any(one.startswith(image.restore_id) for one in (stored.restore_id, stored.original_id))


def _current(image: SavedImage, point: StoredPoint) -> SavedImage:
    for stored in point.images:
        if same_image(image, stored):
            return replace(image, restore_id=stored.restore_id)
    message = f"the restore point of {point.domain} from run {point.id.run} lacks {image.target}"
    hint = f"its image {image.image} was removed from the repository; choose another restore point: see"
    raise BackupError(message, f"{hint} `{COMMAND} restore-points {point.domain}`")


def _require_one_domain(points: Sequence[StoredPoint], name: str) -> None:
    newest = {point.id.uuid: point for point in points}
    if len(newest) > 1:
        uuids = ", ".join(f"{one} (until {point.taken:%Y-%m-%d %H:%M})" for one, point in newest.items())
        raise ConfigError([BackupError(f"several domains had the name {name}", f"use the UUID: {uuids}")])


def _end_of_time(at: str) -> datetime | None:
    """Return the end of this second, minute or day, None if `at` is not a time."""
    for form, length in TIME_FORMS.items():
        try:
            return datetime.strptime(at, form).replace(tzinfo=timezone.utc) + length
        except ValueError:
            continue
        except OverflowError:  # its end is after the last time that there is
            return datetime.max.replace(tzinfo=timezone.utc)
    return None


def _has_name(point: StoredPoint, name: str, exact: Container[str]) -> bool:
    return has_name(point.domain, point.id.uuid, name, exact)


def _no_restore_point(name: str, points: Sequence[StoredPoint]) -> BackupError:
    domains = sorted({point.domain for point in points})
    near = difflib.get_close_matches(name, domains, n=1)
    hint = f"did you mean {near[0]}?" if near else f"`{COMMAND} restore-points` lists all"
    return BackupError(f"there is no restore point of a domain {name!r}", hint)
