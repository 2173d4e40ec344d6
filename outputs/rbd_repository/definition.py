"""The manifest of a domain's restore points, as the content of its definition image."""

from __future__ import annotations

from backup.ceph.image_reader import ImageReader
from backup.ceph.repository_image import RepositoryImage
from backup.model import Extent
from backup.stored import Packed
from backup.system.spool import Spool, chunks
from backup.transfer import backup_stream

from ..own_points.changed_parts import PIECE
from ..own_points.written_pieces import PieceWriter

OBJECT_SIZE = 4 << 20  # bytes


def write_definition(image: RepositoryImage, packed: Packed) -> None:
    """Replace the image's content. It is exactly as large, so that `rbd export` gives a tar file."""
    image.resize(len(packed))
    writer, offset = PieceWriter(image, fresh=False), 0
    for data in chunks(packed, PIECE):
        writer.write(Extent(offset, len(data)), offset, data)
        offset += len(data)
    writer.settle()
    image.flush()


def read_definition(reader: ImageReader) -> Spool:
    """Return what `write_definition` wrote. Raises BackupError."""
    packed = Spool()
    starts = range(0, reader.size, PIECE)
    pieces = (Extent(start, min(PIECE, reader.size - start)) for start in starts)
    for _, data in backup_stream.read_ahead(reader, pieces):
        packed.append(data)
    return packed
