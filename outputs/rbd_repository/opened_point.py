"""An open restore point: its snapshots are read at any offset."""

from __future__ import annotations

from contextlib import ExitStack

from backup.ceph.image_reader import ImageReader
from backup.ceph.repository_pool import RepositoryPool
from backup.errors import BackupError
from backup.stored import Packed, SavedImage, StoredPoint

from .names import definition_name, split_id


class OpenedPoint:
    """A restore point that is not removed meanwhile. Satisfies backup.protocols.OpenedPoint."""

    def __init__(self, pool: RepositoryPool, point: StoredPoint, packed: Packed, stack: ExitStack) -> None:
        """`stack` closes what is opened."""
        self._pool = pool
        self._point = point
        self._packed = packed
        self._stack = stack

    def manifest(self) -> Packed:
        return self._packed

    def image(self, image: SavedImage) -> OpenedImage:
        name, snapshot = split_id(image.restore_id)
        reader = self._stack.enter_context(self._pool.reader(name, snapshot))
        if reader.size != image.size:
            message = f"{image.restore_id} has {reader.size} bytes, its manifest {image.size}"
            raise BackupError(message, "choose another restore point")
        return OpenedImage(reader)

    def check(self) -> None:
        """Raise BackupError if somebody has removed the snapshots: they would read as zeros."""
        name = definition_name(self._point.id.uuid)
        if self._point.manifest_id not in self._pool.state(name).snapshots:
            message = f"the restore point of {self._point.domain} from run {self._point.id.run} was removed"
            raise BackupError(
                message, f"another program or person has removed it: rbd snap ls {self._pool.image(name)}"
            )

    def damage(self) -> str:
        return ""


class OpenedImage:
    """A snapshot that is read at any offset. Satisfies backup.protocols.RandomAccess."""

    def __init__(self, reader: ImageReader) -> None:
        self._reader = reader

    def read(self, offset: int, length: int) -> bytes:
        return self._reader.start_read(offset, length)()
