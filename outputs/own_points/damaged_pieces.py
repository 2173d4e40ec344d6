"""Finds the pieces of an image of the repository that are not what was saved.

A full read compares the source with the checksums: without this, damage would stay for ever.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Callable

from backup.ceph.errors import ClusterError
from backup.model import Extent
from backup.protocols import ImageReads
from backup.restore_point.checksums import NO_RECORD, Checksums
from backup.transfer.backup_stream import WINDOW_BYTES
from backup.transfer.compare import SHOWN, differs

from .changed_parts import PIECE, ChangedParts

READS = WINDOW_BYTES // PIECE  # in flight at a time


def damaged_pieces(
    image: ImageReads,
    extents: Iterable[Extent],
    before: Checksums,
    unknown: ChangedParts,
    progress: Callable[[int], None],
) -> Iterator[Extent]:
    """Read the image, and yield the pieces that differ from `before`, but for `unknown`.

    Also those that Ceph cannot read, as an object is lost. What is a hole in `extents` and in `before` is not
    read, nor what is beyond the size of `unknown`. `progress` is called often, with 0. Raises BackupError.
    """
    wanted = ChangedParts(min(image.size, unknown.size))
    wanted.add_pieces(extent for extent in extents if extent.length)
    wanted.add_pieces(Extent(offset, length) for offset, length, _ in before)
    records = iter(before)
    record = next(records, None)
    for piece, wait in _started(image, (wanted.piece(one) for one in wanted if one not in unknown)):
        while record and record[0] < piece.offset:
            record = next(records, None)
        known = record if record and record[0] < piece.offset + PIECE else (piece.offset, *NO_RECORD)
        progress(0)
        try:
            data = wait()
        except ClusterError as error:
            if error.number != errno.EIO:
                raise
            yield piece
            continue
        if known[0] + known[1] <= image.size and differs(data, piece.offset, known):  # else it has shrunk
            yield piece


def added(pieces: Iterable[Extent], unknown: ChangedParts) -> str:
    """Add pieces to `unknown`; return where the first ones are, "" if there are none."""
    count, first = 0, []
    for piece in pieces:
        unknown.add_pieces([piece])
        count += 1
        first += [f"at {piece.offset}"] if count <= SHOWN else []
    more = f", and {count - SHOWN} more" if count > SHOWN else ""
    return f"pieces {', '.join(first)}{more}" if count else ""


def _started(image: ImageReads, pieces: Iterable[Extent]) -> Iterator[tuple[Extent, Callable[[], bytes]]]:
    """Yield the pieces, each with the function that waits for its bytes."""
    in_flight: deque[tuple[Extent, Callable[[], bytes]]] = deque()
    for piece in pieces:
        in_flight.append((piece, image.start_read(piece.offset, piece.length)))
        if len(in_flight) >= READS:
            yield in_flight.popleft()
    yield from in_flight
