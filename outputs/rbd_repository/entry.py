"""The entry of a restore point beside the manifest: what a list shows of it, without reading the manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from backup.errors import BackupError
from backup.protocols import SnapshotSource
from backup.stored import PointId, RestorePoint, SavedImage, StoredImage, StoredPoint

from .names import disk_name, restore_id, snapshot_name


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


def unpacked(text: str, where: str) -> Entry:
    """Read what `packed` wrote. Raises BackupError."""
    try:
        content = json.loads(text)
        taken = datetime.fromisoformat(content["taken"])
        images = tuple(EntryImage(**fields) for fields in content["images"])
        return Entry(**{**content, "taken": taken, "images": images, "locks": tuple(content["locks"])})
    except (ValueError, KeyError, TypeError) as error:
        message = f"the note {where} is damaged ({type(error).__name__})"
        raise BackupError(message, f"see rbd image-meta ls {where.partition(': ')[0]}") from error


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
