"""Compares what an output returns with checksums, or with the snapshot that was saved."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Callable, Union

from ..command import COMMAND
from ..errors import BackupError
from ..model import Extent
from ..protocols import SnapshotReader, Source
from ..restore_point.checksums import NO_RECORD, Checksums, digest
from ..stored import Layout, SavedDomain, SavedImage
from . import backup_stream
from .restore_stream import PIECE, ZERO_PIECE, next_piece, require_end

DAMAGED = (
    "the repository is damaged: check it (`restic check --read-data`), then back up the domain again, with "
    f'OUTPUT = "rbd" or "directory" after `{COMMAND} cleanup --all`, so that everything is read'
)
SHOWN = 3  # differing extents that a message lists

Progress = Callable[[int], None]
Piece = Union[bytes, bytearray]


class Mismatch(BackupError):
    """An image in the repository differs from what was saved."""


def pieces_from_output(source: Source, size: int) -> Iterator[bytearray]:
    """Yield an image from the output in pieces; each is valid until the next one. Raises BackupError."""
    buffer = bytearray(PIECE)
    for start in range(0, size, PIECE):
        yield next_piece(source, buffer, start, size)
    require_end(source, size)


def pieces_from_image(reader: SnapshotReader) -> Generator[bytes, None, None]:
    """Yield an image from the cluster in pieces, holes included. Raises BackupError.

    Close it before the image: it has reads in flight.
    """
    starts = range(0, reader.size, PIECE)
    extents = (Extent(start, min(PIECE, reader.size - start)) for start in starts)
    with closing(backup_stream.read_ahead(reader, extents)) as pieces:
        for _, data in pieces:
            yield data


def require_checksums(saved: SavedDomain) -> None:
    """Raise BackupError if there are images without checksums."""
    if missing := [image.target for image in saved.images if image.target not in saved.checksums]:
        message = f"run {saved.point.run}, of an older version, saved no checksums of {', '.join(missing)}"
        raise BackupError(message, "newer restore points can be verified")


class Comparison:
    """Compares an image, as its pieces pass one after another, with the checksums of what was saved."""

    def __init__(self, image: SavedImage, checksums: Checksums) -> None:
        self.compared = 0  # bytes
        self._image = image
        self._records = iter(checksums)
        self._record = next(self._records, None)
        self._wrong: list[Extent] = []

    def add(self, piece: Piece) -> None:
        """Compare the next piece; it is not used after this."""
        start, record = self.compared, self._record
        expected = (start, *NO_RECORD)
        if record and record[0] < start + PIECE:
            expected = record
            self._record = next(self._records, None)
        if differs(piece, start, expected):
            self._wrong.append(Extent(*expected[:2]) if expected[1] else Extent(start, len(piece)))
        self.compared += len(piece)

    def require_equal(self) -> None:
        """Raise Mismatch if the pieces are not what was saved."""
        image = self._image
        _require_none(self._wrong, image)
        if self.compared != image.size:
            message = f"{image.target} ({image.image}) has {image.size} bytes, {self.compared} were read"
            raise Mismatch(message, DAMAGED)
        if self._record:
            message = f"{image.target} ({image.image}) has checksums beyond its {image.size} bytes"
            raise Mismatch(message, "the manifest is damaged: back up the domain again")


def compare_with_checksums(
    pieces: Iterable[Piece], image: SavedImage, checksums: Checksums, progress: Progress
) -> None:
    """Compare an image with the checksums of the bytes that were saved. Raises Mismatch."""
    comparison = Comparison(image, checksums)
    for piece in pieces:
        comparison.add(piece)
        progress(comparison.compared)
    comparison.require_equal()


def differs(piece: Piece, start: int, record: tuple[int, int, bytes]) -> bool:
    """Return whether a piece at offset `start` differs from its record: data with zeros around it."""
    offset, length, expected = record
    first, end = offset - start, offset - start + length
    return digest(memoryview(piece)[first:end]) != expected or any(_zeros_broken(piece, first, end))


def compare_with_snapshot(
    pieces: Iterable[Piece], image: SavedImage, reader: SnapshotReader, progress: Progress
) -> None:
    """Compare an image with the snapshot itself. Raises Mismatch."""
    if reader.size != image.size:
        message = (
            f"{image.target} ({image.image}): the snapshot has {reader.size} bytes, {image.size} are saved"
        )
        raise Mismatch(message, DAMAGED)
    wrong, start = [], 0
    with closing(pieces_from_image(reader)) as read:
        for piece, data in zip(pieces, read):
            if piece != data:
                wrong.append(Extent(start, len(data)))
            start += len(data)
            progress(start)
    _require_none(wrong, image)


def object_number(offset: int, layout: Layout) -> int:
    """Return the number of the RBD object that holds a byte (docs.ceph.com, "File striping")."""
    unit, count = layout.stripe_unit, layout.stripe_count
    block = offset // unit
    stripe, position = divmod(block, count)
    return stripe // (layout.object_size // unit) * count + position


def _zeros_broken(piece: Piece, first: int, end: int) -> Iterator[bool]:
    """Yield whether there are non-zero bytes before the data, then after them."""
    yield not piece.startswith(ZERO_PIECE[:first])
    yield not piece.startswith(ZERO_PIECE[: len(piece) - end], end)


def _require_none(wrong: list[Extent], image: SavedImage) -> None:
    if not wrong:
        return
    places = [
        f"{one.length} bytes at offset {one.offset} (object {object_number(one.offset, image.layout)})"
        for one in wrong[:SHOWN]
    ]
    more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    message = f"{image.target} ({image.image}) differs from what was saved: {', '.join(places)}{more}"
    raise Mismatch(message, DAMAGED)
