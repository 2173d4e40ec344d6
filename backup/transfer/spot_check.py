"""Checks a sample of what Ceph reports as unchanged: a change missed once would be missed for ever."""

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

SAMPLE = 16  # pieces of READ_SIZE: this many that had data, and this many anywhere


def spot_check(reader: SnapshotReader, base: Base, unchanged: Sequence[Extent]) -> Extent | None:
    """Compare a sample of the unchanged extents with the base's checksums.

    Returns the first piece that differs, None if there is none. The extents are in order and begin at
    multiples of READ_SIZE. Raises BackupError.
    """
    checksums = Checksums(base.checksums)
    drawn = sorted({*_anything(unchanged), *_data(checksums, unchanged)})
    reads = (Extent(start, length) for start, length in drawn)
    with closing(backup_stream.read_ahead(reader, reads)) as pieces:
        for start, piece in pieces:
            record = checksums.first_in(start, start + len(piece))
            if differs(piece, start, record or (start, *NO_RECORD)):
                return Extent(start, len(piece))
    return None


def _anything(extents: Sequence[Extent]) -> Iterator[tuple[int, int]]:
    """Choose pieces at random: their offsets and lengths."""
    counts = [-(-extent.length // READ_SIZE) for extent in extents]
    total = sum(counts)
    for number in random.sample(range(total), min(SAMPLE, total)):
        for extent, count in zip(extents, counts):
            if number < count:
                yield _piece(extent, number)
                break
            number -= count


def _data(records: Checksums, extents: Sequence[Extent]) -> Iterator[tuple[int, int]]:
    """Choose pieces that had data at random; fewer if much has changed."""
    for number in random.sample(range(len(records)), min(SAMPLE, len(records))):
        offset, _, _ = records[number]
        for extent in extents:
            if extent.offset <= offset < extent.offset + extent.length:
                yield _piece(extent, (offset - extent.offset) // READ_SIZE)
                break


def _piece(extent: Extent, number: int) -> tuple[int, int]:
    start = extent.offset + number * READ_SIZE
    return start, min(READ_SIZE, extent.offset + extent.length - start)
