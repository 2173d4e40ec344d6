"""Proof that what an output gives back is what was saved."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Callable, Union

from ..errors import BackupError
from ..model import Extent
from ..protocols import SnapshotReader, Source
from ..restore_point.checksums import NO_RECORD, Checksums, digest
from ..stored import Layout, SavedDomain, SavedImage
from . import backup_stream
from .restore_stream import PIECE, ZERO_PIECE, next_piece, require_end

DAMAGED = "the repository is damaged: see restic check --read-data; back it up again"
SHOWN = 3  # places of a damaged image that are told one by one

Progress = Callable[[int], None]
Piece = Union[bytes, bytearray]


class Mismatch(BackupError):
    """An image comes back with other bytes than were saved."""


def pieces_from_output(source: Source, size: int) -> Iterator[bytearray]:
    """Yield what an output gives back, in pieces; each is valid until the next. Raises BackupError."""
    buffer = bytearray(PIECE)
    for start in range(0, size, PIECE):
        yield next_piece(source, buffer, start, size)
    require_end(source, size)


def pieces_from_image(reader: SnapshotReader) -> Generator[bytes, None, None]:
    """Yield every byte of an image, whatever is listed as a hole, in pieces. Raises BackupError.

    To be closed before the image is: reads are under way.
    """
    starts = range(0, reader.size, PIECE)
    extents = (Extent(start, min(PIECE, reader.size - start)) for start in starts)
    with closing(backup_stream.read_ahead(reader, extents)) as pieces:
        for _, data in pieces:
            yield data


def require_checksums(saved: SavedDomain) -> None:
    """Raise BackupError if there are images without checksums."""
    if missing := [image.target for image in saved.images if image.target not in saved.checksums]:
        message = f"run {saved.point.run} saved no checksums of {', '.join(missing)}: an older version did it"
        raise BackupError(message, "what is saved from now on can be verified")


def compare_with_checksums(
    pieces: Iterable[Piece], image: SavedImage, checksums: Checksums, progress: Progress
) -> None:
    """Hold what comes back against the checksums of what was sent. Raises Mismatch."""
    records = iter(checksums)
    record = next(records, None)
    wrong, start = [], 0
    for piece in pieces:
        expected = (start, *NO_RECORD)
        if record and record[0] < start + PIECE:
            expected = record
            record = next(records, None)
        if differs(piece, start, expected):
            wrong.append(Extent(*expected[:2]) if expected[1] else Extent(start, len(piece)))
        start += len(piece)
        progress(start)
    _require_none(wrong, image)
    if start != image.size:
        raise Mismatch(f"{image.target} ({image.image}) has {image.size} bytes, {start} came back", DAMAGED)
    if record:
        message = f"{image.target} ({image.image}) has checksums beyond its {image.size} bytes"
        raise Mismatch(message, "the manifest is damaged: back it up again")


def differs(piece: Piece, start: int, record: tuple[int, int, bytes]) -> bool:
    """Tell whether a piece, from `start` on, is not what its record says: data, and zeros around it."""
    offset, length, expected = record
    first, end = offset - start, offset - start + length
    return digest(memoryview(piece)[first:end]) != expected or any(_zeros_broken(piece, first, end))


def compare_with_snapshot(
    pieces: Iterable[Piece], image: SavedImage, reader: SnapshotReader, progress: Progress
) -> None:
    """Hold what comes back against the snapshot itself. Raises Mismatch."""
    if reader.size != image.size:
        message = f"{image.target} ({image.image}) has {reader.size} bytes, {image.size} are saved"
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
    """Tell in which of an image's objects a byte lies (docs.ceph.com, "File striping")."""
    unit, count = layout.stripe_unit, layout.stripe_count
    block = offset // unit
    stripe, position = divmod(block, count)
    return stripe // (layout.object_size // unit) * count + position


def _zeros_broken(piece: Piece, first: int, end: int) -> Iterator[bool]:
    """Tell whether there are other bytes than zeros before or after the data."""
    yield not piece.startswith(ZERO_PIECE[:first])
    yield not piece.startswith(ZERO_PIECE[: len(piece) - end], end)


def _require_none(wrong: list[Extent], image: SavedImage) -> None:
    if not wrong:
        return
    places = [
        f"{one.length} bytes at offset {one.offset} (object {object_number(one.offset, image.layout)})"
        for one in wrong[:SHOWN]
    ]
    more = f", and {len(wrong) - SHOWN} more places" if len(wrong) > SHOWN else ""
    message = f"{image.target} ({image.image}) does not come back as it was saved: {', '.join(places)}{more}"
    raise Mismatch(message, DAMAGED)
