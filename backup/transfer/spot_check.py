"""A check of what is said not to have changed: a change that is missed once is missed for ever."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing

from ..model import Extent
from ..protocols import SnapshotReader
from ..restore_point.checksums import NO_RECORD, Checksums
from ..stored import Base
from . import backup_stream
from .backup_stream import READ_SIZE
from .compare import differs

SAMPLE = 16  # pieces of READ_SIZE: so many of what was data, and so many of what was anything


def spot_check(reader: SnapshotReader, base: Base, unchanged: Sequence[Extent]) -> Extent | None:
    """Compare some of what is said to be as it was saved with the base's checksums.

    Gives the first piece that is not, None if all are. The extents are in order, and begin at multiples of
    READ_SIZE. Raises BackupError.
    """
    checksums = Checksums(bytearray(base.checksums))
    drawn = sorted({*_anything(unchanged), *_data(checksums, unchanged)})
    reads = (Extent(start, length) for start, length in drawn)
    with closing(backup_stream.read_ahead(reader, reads)) as pieces:
        for start, piece in pieces:
            record = checksums.first_in(start, start + len(piece))
            if differs(piece, start, record or (start, *NO_RECORD)):
                return Extent(start, len(piece))
    return None


def _anything(extents: Sequence[Extent]) -> Iterator[tuple[int, int]]:
    """Draw (offset, length) of pieces, each as likely as any other."""
    counts = [-(-extent.length // READ_SIZE) for extent in extents]
    total = sum(counts)
    for number in random.sample(range(total), min(SAMPLE, total)):
        for extent, count in zip(extents, counts):
            if number < count:
                yield _piece(extent, number)
                break
            number -= count


def _data(records: Checksums, extents: Sequence[Extent]) -> Iterator[tuple[int, int]]:
    """Draw (offset, length) of pieces that had data; fewer where much has changed."""
    for number in random.sample(range(len(records)), min(SAMPLE, len(records))):
        offset, _, _ = records[number]
        for extent in extents:
            if extent.offset <= offset < extent.offset + extent.length:
                yield _piece(extent, (offset - extent.offset) // READ_SIZE)
                break


def _piece(extent: Extent, number: int) -> tuple[int, int]:
    start = extent.offset + number * READ_SIZE
    return start, min(READ_SIZE, extent.offset + extent.length - start)
