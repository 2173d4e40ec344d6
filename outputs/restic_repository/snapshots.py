"""Recognizes restore points in a repository by the tags of its snapshots."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Optional
from urllib.parse import unquote

from backup.stored import PointId, StoredImage, StoredPoint, is_future

from ..segments.layout import MANIFEST_FILE as LAST_FILE

TAG = "virt-rbd-backup"
MANIFEST_TAG = "definition"
LOCK_TAG = "lock="
MANIFEST_FILE = "definition.tar"
ALTERED = {"rewrite", "repaired"}  # restic adds one of these tags where it keeps the original

Listed = Sequence[Mapping[str, Any]]  # the output of `restic snapshots --json`


def encoded(tag: str) -> str:
    """Encode characters at which restic would split a tag, as in URLs."""
    return "".join(f"%{ord(char):02X}" if char in "%," or not char.isprintable() else char for char in tag)


def file_name(target: str) -> str:
    """Return a flat name, unique within the domain: restic 0.18.0 accepts no directories in it."""
    return f"{target.replace('/', '_')}.img"


def manifest_file(point: StoredPoint) -> str:
    """Return the path of the manifest in its snapshot: one of its own, or that of the segments."""
    with_segments = any(image.restore_id == point.manifest_id for image in point.images)
    return f"/{LAST_FILE}" if with_segments else MANIFEST_FILE


def segments_tag(target: str, image: str, size: int) -> str:
    """Return the tag of a disk in the snapshot with the segments of all disks of a domain."""
    return f"segments.{target}={size} {image}"


def time_of(snapshot: Mapping[str, Any]) -> datetime:
    """Return its time, to the second."""
    return moment(snapshot["time"])


def moment(written: str) -> datetime:
    """Read restic's time: RFC 3339 with up to nine digits of a second, of which Python 3.9 takes six."""
    return datetime.fromisoformat(re.sub(r"\.\d+", "", written).replace("Z", "+00:00"))


def point_id(snapshot: Mapping[str, Any]) -> PointId:
    """Return the id of the restore point that it belongs to."""
    values = _values(snapshot)
    return PointId(values.get("run", ""), values.get("uuid", ""), _number(values.get("attempt", "")) or 1)


def incomplete(snapshots: Listed) -> set[PointId]:
    """Return the ids of the restore points without a manifest."""
    return {point.id for point in stored_points(snapshots) if not point.manifest_id}


def stored_points(snapshots: Listed) -> Sequence[StoredPoint]:
    """Group the snapshots into restore points, oldest first, complete or not.

    Those with a time in the future come first: they were made by a wrong clock, before it was set.
    """
    parts: dict[PointId, list[Mapping[str, Any]]] = {}
    for snapshot in snapshots:
        parts.setdefault(point_id(snapshot), []).append(snapshot)
    points = (_point(identity, _unaltered(group)) for identity, group in parts.items())
    return sorted(points, key=lambda point: (not is_future(point.taken), point.taken))


def _unaltered(snapshots: Listed) -> Listed:
    """Leave out what `restic rewrite` or `repair snapshots` made of others that are still there."""
    altered = [one for one in snapshots if ALTERED & set(one["tags"])]
    originals = [one for one in snapshots if one not in altered]
    known = {identity for one in originals for identity in (one["id"], one.get("original")) if identity}
    return [one for one in snapshots if one in originals or one.get("original") not in known]


def _point(identity: PointId, snapshots: Listed) -> StoredPoint:
    manifest = next((one for one in snapshots if MANIFEST_TAG in one["tags"]), None)
    tags = _values(manifest or snapshots[0])
    return StoredPoint(
        id=identity,
        domain=snapshots[0]["hostname"],
        taken=time_of(manifest or snapshots[0]),
        consistency=tags.get("consistency", ""),
        node=tags.get("node", ""),
        images=tuple(image for one in snapshots for image in _images(one)),
        manifest_id=manifest["id"] if manifest else "",
        locks=_locks(snapshots),
    )


def _locks(snapshots: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the places of the locks that the job held; none if an older version saved the point."""
    tags = {tag for one in snapshots for tag in one["tags"] if tag.startswith(LOCK_TAG)}
    return tuple(sorted(unquote(tag[len(LOCK_TAG) :]) for tag in tags))


def _images(snapshot: Mapping[str, Any]) -> Iterator[StoredImage]:
    """Yield the images in a snapshot; one with a manifest has none, or the segments of all."""
    tags = _values(snapshot)
    original = snapshot.get("original") or ""  # the id before `restic tag` or `restic copy`
    segmented = False
    for name, value in tags.items():
        size, _, image = value.partition(" ")
        length = _number(size)
        if name.startswith("segments.") and length is not None:  # otherwise an admin's own tag
            segmented = True
            yield StoredImage(name.partition(".")[2], image, length, snapshot["id"], original)
    if not segmented and MANIFEST_TAG not in snapshot["tags"]:
        known = _number(tags.get("size", ""))
        yield StoredImage(tags.get("disk", ""), tags.get("image", ""), known, snapshot["id"], original)


def _number(text: str) -> Optional[int]:
    return int(text) if text.isascii() and text.isdigit() else None


def _values(snapshot: Mapping[str, Any]) -> Mapping[str, str]:
    pairs = (tag.split("=", 1) for tag in snapshot["tags"] if "=" in tag)
    return {name: unquote(value) for name, value in pairs}
