"""The entry of a restore point beside the manifest: what a list shows of it, without reading the manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Optional

from backup.protocols import SnapshotSource
from backup.stored import PointId, RestorePoint, SavedDomain, SavedImage, StoredImage, StoredPoint

from .names import definition_name, disk_name, restore_id, snapshot_name, split_id


@dataclass(frozen=True)
class EntryImage:
    """An image of a restore point: the disk's target, the source's name, the image that has it, its size."""

    target: str
    image: str
    stored: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A restore point from its beginning to the end of its removal.

    It counts while the definition image has its snapshot. `removed`: it does not count any more.
    """

    domain: str
    taken: datetime
    consistency: str
    node: str
    locks: tuple[str, ...]
    images: tuple[EntryImage, ...]
    removed: bool = False

    def packed(self) -> str:
        return json.dumps({**asdict(self), "taken": self.taken.isoformat()})

    def marked_removed(self) -> Entry:
        return replace(self, removed=True)

    def listed(self, point: PointId, snapshots: Sequence[str], complete: bool) -> StoredPoint:
        """Return it as an output lists it; `snapshots` has the ids of those that exist."""
        snapshot = snapshot_name(point)
        named = {one: restore_id(one.stored, snapshot) for one in self.images}
        images = tuple(
            StoredImage(one.target, one.image, one.size or None, identifier)
            for one, identifier in named.items()
            if identifier in snapshots
        )
        manifest_id = snapshot if complete and not self.removed else ""
        return StoredPoint(
            point, self.domain, self.taken, self.consistency, self.node, images, manifest_id, self.locks
        )


def unpacked(text: str) -> Optional[Entry]:
    """Read what `packed` wrote, None if it is damaged."""
    try:
        content = json.loads(text)
        taken = datetime.fromisoformat(content["taken"])
        images = tuple(EntryImage(**fields) for fields in content["images"])
        return Entry(**{**content, "taken": taken, "images": images, "locks": tuple(content["locks"])})
    except (ValueError, KeyError, TypeError):
        return None


def entry_of_manifest(saved: SavedDomain) -> Entry:
    """Return the entry of a complete restore point, but for its node and the locks of its run."""
    images = tuple(
        EntryImage(one.target, one.image, split_id(one.restore_id)[0], one.size) for one in saved.images
    )
    return Entry(saved.name, saved.taken, saved.consistency.value, "", (), images)


def guessed_entry(uuid: str, snapshot: str, names: Sequence[str]) -> Entry:
    """Return an entry for a restore point of which nothing can be read: its images are among `names`."""
    prefix = disk_name(uuid, "")
    stored = [name for name in names if name.startswith(prefix) and name != definition_name(uuid)]
    images = tuple(EntryImage(name[len(prefix) :], "", name, 0) for name in stored)
    taken = datetime.strptime(snapshot[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    return Entry(uuid, taken, "", "", (), images)


def entry_of(
    point: RestorePoint, sources: Sequence[SnapshotSource], saved: Sequence[SavedImage] = ()
) -> Entry:
    """Return the entry of a restore point; without the saved images their sizes are not known yet."""
    sizes = {one.target: one.size for one in saved}
    images = tuple(
        EntryImage(target, str(one.image), disk_name(point.domain.uuid, target), sizes.get(target, 0))
        for one in sources
        for target in (one.disk.target,)
    )
    return Entry(point.domain.name, point.taken, point.consistency.value, point.host, point.locks, images)
