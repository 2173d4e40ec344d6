"""A check of what is said not to have changed: a change that is missed once is missed for ever."""

from __future__ import annotations

import random
from collections.abc import Sequence
from operator import attrgetter

from . import stream
from .base import Base
from .checksums import NO_RECORD
from .model import Extent
from .protocols import SnapshotReader
from .stream import READ_SIZE
from .verify import differs

SAMPLE = 16  # pieces of READ_SIZE: so many of what was data, and so many of what was anything


def spot_check(reader: SnapshotReader, base: Base, unchanged: Sequence[Extent]) -> Extent | None:
    """Compare some of what is said to be as it was saved with the base's checksums.

    Gives the first piece that is not, None if all are. The extents begin at multiples of READ_SIZE. Raises
    BackupError.
    """
    records = {record[0] // READ_SIZE: record for record in base.checksums}
    pieces = [
        Extent(start, min(READ_SIZE, extent.offset + extent.length - start))
        for extent in unchanged
        for start in range(extent.offset, extent.offset + extent.length, READ_SIZE)
    ]
    data = [piece for piece in pieces if piece.offset // READ_SIZE in records]
    drawn = {*_some(pieces), *_some(data)}
    for start, piece in stream.read_ahead(reader, iter(sorted(drawn, key=attrgetter("offset")))):
        if differs(piece, start, records.get(start // READ_SIZE, (start, *NO_RECORD))):
            return Extent(start, len(piece))
    return None


def _some(pieces: Sequence[Extent]) -> Sequence[Extent]:
    return random.sample(pieces, min(SAMPLE, len(pieces)))
