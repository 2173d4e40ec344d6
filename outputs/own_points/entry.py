"""The entry of a restore point beside the manifest: what a list shows of it, without reading the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Callable, Optional

from backup.protocols import SnapshotSource
from backup.stored import PointId, RestorePoint, SavedDomain, SavedImage, StoredImage, StoredPoint

from .run_names import began


@dataclass(frozen=True)
class EntryImage:
    """An image of a restore point: the disk's target, the source's name, the name that it has in the
    repository, its size.
    """

    target: str
    image: str
    stored: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A restore point from its beginning to the end of its removal.

    What makes it count is not here. `removed`: it does not count any more.
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

    def listed(self, point: PointId, restore_id: Callable[[str], str], manifest_id: str) -> StoredPoint:
        """Return it as an output lists it.

        `restore_id` returns the id of the image with a name in the repository, "" if it is not there.
        `manifest_id` is "" if the restore point does not count.
        """
        images = tuple(
            StoredImage(one.target, one.image, one.size or None, identifier)
            for one in self.images
            if (identifier := restore_id(one.stored))
        )
        return StoredPoint(
            *(point, self.domain, self.taken, self.consistency, self.node, images, manifest_id),
            locks=self.locks,
            removed=self.removed,
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


def entry_of_manifest(saved: SavedDomain, stored: Callable[[str], str]) -> Entry:
    """Return the entry of a complete restore point, but for its node and the locks of its run.

    `stored` returns the name in the repository of the image with a restore id.
    """
    images = tuple(
        EntryImage(one.target, one.image, stored(one.restore_id), one.size) for one in saved.images
    )
    return Entry(saved.name, saved.taken, saved.consistency.value, "", (), images)


def guessed_entry(uuid: str, name: str, targets: Mapping[str, str]) -> Entry:
    """Return an entry for a restore point with this name of which nothing can be read.

    `targets` has those of its images, by their names in the repository.
    """
    images = tuple(EntryImage(target, "", stored, 0) for stored, target in targets.items())
    return Entry(uuid, began(name), "", "", (), images)


def entry_of(
    point: RestorePoint,
    sources: Sequence[SnapshotSource],
    stored: Callable[[str], str],
    saved: Sequence[SavedImage] = (),
) -> Entry:
    """Return the entry of a restore point; without the saved images their sizes are not known yet.

    `stored` returns the name in the repository of the image of the disk with a target.
    """
    sizes = {one.target: one.size for one in saved}
    images = tuple(
        EntryImage(target, str(one.image), stored(target), sizes.get(target, 0))
        for one in sources
        for target in (one.disk.target,)
    )
    return Entry(point.domain.name, point.taken, point.consistency.value, point.host, point.locks, images)
