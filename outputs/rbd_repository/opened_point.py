"""An open restore point: its snapshots are read at any offset, or from the first to the last byte."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Callable

from backup.ceph.image_reader import ImageReader
from backup.ceph.repository_pool import RepositoryPool
from backup.errors import BackupError
from backup.model import Extent
from backup.stored import Packed, SavedImage, StoredPoint
from backup.transfer import backup_stream

from .changed_parts import PIECE
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


class PieceSource:
    """A snapshot that is read in order. Satisfies backup.protocols.Source.

    A context manager: after its block no read is waited for.
    """

    def __init__(self, reader: ImageReader, check_stop: Callable[[], None]) -> None:
        self.received = 0
        starts = range(0, reader.size, PIECE)
        reads = (Extent(start, min(PIECE, reader.size - start)) for start in starts)
        self._pieces = backup_stream.read_ahead(reader, reads)
        self._piece = memoryview(b"")
        self._check_stop = check_stop

    def __enter__(self) -> PieceSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._pieces.close()

    def fill(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            if not self._piece:
                self._check_stop()
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._piece = memoryview(piece[1])
            part = self._piece[: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            self._piece = self._piece[len(part) :]
            filled += len(part)
        self.received += filled
        return filled
