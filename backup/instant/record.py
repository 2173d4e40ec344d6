"""The record of an instant restore: an object beside its first image, by which any node continues it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum

from ..ceph.cluster import Cluster
from ..ceph.record_object import (
    create_record,
    read_record,
    remove_record,
    write_record,
    written_by_another,
)
from ..command import COMMAND
from ..errors import BackupError
from ..model import OVERLAY, Image, image_named
from ..stored import PointId, StoredPoint

PREFIX = "virt-rbd-backup.instant."  # of the objects; the name of the first image follows
VERSION = 1
TIME_FORM = "%Y-%m-%d %H:%M:%S"  # of `Record.taken`


class Stage(str, Enum):
    """How far an instant restore is."""

    PREPARING = "preparing"  # the guest has never run: its overlays are empty, or not there
    RUNNING = "running"  # the guest runs, or did: what it wrote is in the overlays, or in moved images
    ABORTED = "aborted"  # the same, but it is to stay shut off


@dataclass(frozen=True)
class RecordedDisk:
    """A disk, by the target in its restore point. `image` is where it is restored to.

    `attached` is its target in the definition, "" if it is in none: it then has no overlay. `filled` is the
    id of the restored image, once that is complete. `moved`: the image has all that the guest has written.
    """

    target: str
    image: str
    attached: str
    filled: str = ""
    moved: bool = False

    @property
    def place(self) -> Image:
        image = image_named(self.image)
        assert image is not None, "it was made of an image"
        return image


@dataclass(frozen=True)
class Record:
    """What is under way: the domain as it is defined (`name`, `uuid`), its restore point, its disks.

    `host` is the node that has started the guest, or is about to. `started`: it may have run. `pivoting`: it
    is paused by this program, and its disks may be moved already although they are not recorded as that.
    `token` distinguishes this instant restore from all others. `options` are those of the command besides
    --instant, as they are typed: without them the command finds other images.
    """

    domain: str
    name: str
    uuid: str
    point: PointId
    taken: str
    token: str
    host: str
    disks: tuple[RecordedDisk, ...]
    stage: Stage = Stage.PREPARING
    no_network: bool = False
    started: bool = False
    pivoting: bool = False
    options: str = ""
    version: int = VERSION

    @property
    def first(self) -> Image:
        return self.disks[0].place

    @property
    def overlays(self) -> Mapping[str, Image]:
        """The images with overlays by the disks' targets in the definition, moved or not."""
        return {disk.attached: disk.place.overlay for disk in self.disks if disk.attached}

    @property
    def on_overlays(self) -> Sequence[RecordedDisk]:
        """The disks that are not moved yet."""
        return [disk for disk in self.disks if disk.attached and not disk.moved]

    @property
    def title(self) -> str:
        return f"instant restore of {self.name} from the restore point of {self.taken} UTC"

    @property
    def progress(self) -> str:
        """How far it is, as a text."""
        if self.stage is not Stage.RUNNING:
            return str(self.stage.value)
        filled = sum(bool(disk.filled) for disk in self.disks)
        moved = len(self.overlays) - len(self.on_overlays)
        return f"{filled} of {len(self.disks)} images restored, {moved} of {len(self.overlays)} disks moved"

    def changed(self, target: str, filled: str = "", moved: bool = False) -> Record:
        """Return it with this disk filled or moved, too."""
        disks = [
            replace(disk, filled=filled or disk.filled, moved=moved or disk.moved)
            if disk.target == target
            else disk
            for disk in self.disks
        ]
        return replace(self, disks=tuple(disks))

    def is_of(self, point: StoredPoint) -> bool:
        return self.point == point.id


def this_host() -> str:
    return socket.gethostname()


def read(cluster: Cluster, image: Image) -> Record | None:
    """Return the record whose first image this is, None if there is none. Raises BackupError."""
    content = read_record(cluster, image, PREFIX + image.name)
    return None if content is None else _parsed(content, image)


def create(cluster: Cluster, record: Record) -> None:
    """Record what begins. Raises BackupError, also if another one has just begun."""
    create_record(cluster, record.first, PREFIX + record.first.name, _packed(record))


def write(cluster: Cluster, record: Record, before: Record) -> None:
    """Replace the record. Raises BackupError; LockLost if another process has changed it since `before`."""
    image, name = record.first, PREFIX + record.first.name
    content = read_record(cluster, image, name)  # perhaps as another version of this program writes it
    if content is None or _parsed(content, image) not in (before, record):
        raise written_by_another(image, name)
    write_record(cluster, image, name, _packed(record), content)


def remove(cluster: Cluster, record: Record) -> None:
    remove_record(cluster, record.first, PREFIX + record.first.name)


def found_in(cluster: Cluster, pool: str, namespace: str) -> Iterator[Record]:
    """Yield the records in a pool and namespace whose first overlays are there. Raises BackupError."""
    for listed in cluster.images_in(pool, namespace):
        if listed.image.is_overlay and not listed.in_trash:
            first = replace(listed.image, name=listed.image.name[: -len(OVERLAY)], id="")
            if record := read(cluster, first):
                yield record


def _packed(record: Record) -> bytes:
    return json.dumps(asdict(record)).encode()


def _parsed(content: bytes, image: Image) -> Record:
    try:
        values = json.loads(content)
        values["point"] = PointId(*values["point"])
        values["disks"] = tuple(RecordedDisk(**disk) for disk in values["disks"])
        values["stage"] = Stage(values["stage"])
        if values["version"] == VERSION:
            return Record(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise _unknown(image) from error
    raise _unknown(image)


def _unknown(image: Image) -> BackupError:
    message = f"the record {PREFIX}{image.name} in {image.place} cannot be read"
    return BackupError(message, f"is it of a newer version of this program? `{COMMAND} --version`")
