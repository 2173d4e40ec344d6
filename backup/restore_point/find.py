"""The restore points that an output holds: which of them are meant, and how they are shown."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase

from .. import PROGRAM
from ..errors import BackupError, ConfigError
from ..job_result import JobResult
from ..stored import SavedDomain, SavedImage, StoredImage, StoredPoint

# How a time may be written, and how long what it names lasts.
TIME_FORMS = {
    "%Y-%m-%d": timedelta(days=1),
    "%Y-%m-%dT%H:%M": timedelta(minutes=1),
    "%Y-%m-%d %H:%M": timedelta(minutes=1),
    "%Y-%m-%dT%H:%M:%S": timedelta(seconds=1),
    "%Y-%m-%d %H:%M:%S": timedelta(seconds=1),
    "%Y-%m-%dT%H:%M:%SZ": timedelta(seconds=1),
}


def of_domains(points: Sequence[StoredPoint], names: Sequence[str]) -> Sequence[StoredPoint]:
    """Give the restore points of the domains with these names, UUIDs or patterns; of all if none is named.

    Raises ConfigError for names of which there is none.
    """
    unknown = [name for name in names if not any(_matches(point, name) for point in points)]
    if unknown:
        raise ConfigError([_nothing_of(name, points) for name in unknown])
    return [point for point in points if not names or any(_matches(point, name) for name in names)]


def chosen(points: Sequence[StoredPoint], name: str, at: str) -> StoredPoint:
    """Give the restore point of the domain, a name or a UUID, that is meant by `at`.

    "latest" is the newest complete one, a run's id (or the beginning of one) that run's, a time in UTC
    (2026-11-25, 2026-11-25T03:00) the newest of up to then. Raises ConfigError.
    """
    of_it = [point for point in points if name in (point.domain, point.id.uuid)]
    if not of_it:
        raise ConfigError([_nothing_of(name, points)])
    _require_one_domain(of_it, name)
    complete = [point for point in of_it if point.manifest_id]
    moment = _moment(at)
    if at == "latest":
        found = complete
    elif moment:
        found = [point for point in complete if point.taken < moment]
    else:
        of_run = [point for point in of_it if point.id.run.startswith(at)]
        found = [
            point for point in of_run if point.manifest_id
        ] or of_run  # of one attempt's run, maybe of several
    if not found:
        message = f"there is no complete restore point of {name} that {at!r} could mean"
        raise ConfigError([BackupError(message, f"{PROGRAM} restore-points {name} lists them")])
    newest = found[-1]
    if not newest.manifest_id:
        message = f"the restore point of {name} from run {newest.id.run} is not complete: it has no manifest"
        raise ConfigError([BackupError(message, "its run failed, or is still under way; see --at latest")])
    return newest


def as_held(saved: SavedDomain, point: StoredPoint) -> SavedDomain:
    """Give what the manifest says with its images as the output has them now; see `images_held`."""
    return replace(saved, images=images_held(saved.images, point))


def images_held(images: Sequence[SavedImage], point: StoredPoint) -> tuple[SavedImage, ...]:
    """Give a restore point's images by the ids that they have now. Raises BackupError if one is gone."""
    return tuple(_held(image, point) if image.size else image for image in images)


def missing(points: Sequence[StoredPoint], run: str, result: JobResult) -> Sequence[str]:
    """Return what of a domain that a run saved is not in the output, by what that lists: () for nothing.

    That is the manifest, or images that the manifest names.
    """
    complete = [one for one in points if one.manifest_id and one.id[:2] == (run, result.uuid)]
    if not complete:
        return ("the manifest",)
    held = [image for one in complete for image in one.images]
    gone = [one for one in result.images if one.size and not any(is_held(one, other) for other in held)]
    return tuple(f"{one.target} ({one.image})" for one in gone)


def is_held(image: SavedImage, held: StoredImage) -> bool:
    """Return whether what is listed is the saved image: a manifest may have the beginning of an id alone."""
    return any(one.startswith(image.restore_id) for one in (held.restore_id, held.original_id))


def _held(image: SavedImage, point: StoredPoint) -> SavedImage:
    for held in point.images:
        if is_held(image, held):
            return replace(image, restore_id=held.restore_id)
    message = f"the restore point of {point.domain} from run {point.id.run} lacks {image.target}"
    hint = f"its image {image.image} was removed from the output; {PROGRAM} restore-points {point.domain}"
    raise BackupError(message, f"{hint} lists others for --at")


def _require_one_domain(points: Sequence[StoredPoint], name: str) -> None:
    newest = {point.id.uuid: point for point in points}
    if len(newest) > 1:
        told = ", ".join(f"{one} (until {point.taken:%Y-%m-%d %H:%M})" for one, point in newest.items())
        raise ConfigError([BackupError(f"several domains had the name {name}", f"name the UUID: {told}")])


def _moment(at: str) -> datetime | None:
    """Give the end of the second, the minute or the day that is named, None if it is no time."""
    for form, length in TIME_FORMS.items():
        try:
            return datetime.strptime(at, form).replace(tzinfo=timezone.utc) + length
        except ValueError:
            continue
    return None


def _matches(point: StoredPoint, name: str) -> bool:
    return point.id.uuid == name or fnmatchcase(point.domain, name)


def _nothing_of(name: str, points: Sequence[StoredPoint]) -> BackupError:
    domains = sorted({point.domain for point in points})
    near = difflib.get_close_matches(name, domains, n=1)
    hint = f"did you mean {near[0]}?" if near else f"see `{PROGRAM} restore-points` for all that there are"
    return BackupError(f"there is no restore point of a domain {name!r}", hint)
