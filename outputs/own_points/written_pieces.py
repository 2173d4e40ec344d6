"""Writes an image of a repository piece by piece: reads and writes in flight, holes stay holes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Callable, Optional, Protocol

from backup.errors import BackupError
from backup.model import Extent
from backup.protocols import ImageWriter, SnapshotReader
from backup.restore_point.checksums import RECORD, Checksums, digest, packed
from backup.transfer import backup_stream
from backup.transfer.backup_stream import WINDOW_BYTES, WINDOW_READS

from .changed_parts import PIECE, ChangedParts

# Zeros are left out from this many bytes on: fewer cost less as data than as an operation of their own.
BLOCK = 64 << 10
ZERO_BLOCK = bytes(BLOCK)

Record = tuple[int, int, bytes]  # of a piece: offset, length and digest of its data, without zeros around
Progress = Callable[[int], None]


class StoredImageWriter(ImageWriter, Protocol):
    """An image of a repository, open for writing: what is not written stays."""

    def start_zeros(self, offset: int, length: int) -> Callable[[], None]:
        """Start to make a range read as zeros; the returned function waits for its end."""


class PieceWriter:
    """Writes parts of an image, up to WINDOW_BYTES at a time. `written` counts bytes of data.

    `fresh`: the image has no data yet, so zeros need not be written. After an error the image waits for what
    is in flight when it is closed.
    """

    def __init__(self, image: StoredImageWriter, fresh: bool) -> None:
        self.written = 0
        self._image = image
        self._fresh = fresh
        self._in_flight: deque[tuple[int, Callable[[], None]]] = deque()
        self._room = WINDOW_BYTES

    def write(self, part: Extent, offset: int, data: bytes) -> None:
        """Make a part of the image what it is in `data`, which begins at `offset`; zeros outside of that.

        The part lies in one piece. Raises BackupError.
        """
        start, end = part.offset, part.offset + part.length
        first = max(start, min(offset, end))
        last = max(first, min(offset + len(data), end))
        self._zero(start, first)
        for begin, stop, zero in _runs(data, first - offset, last - offset):
            if zero:
                self._zero(offset + begin, offset + stop)
            else:
                whole = begin == 0 and stop == len(data)
                self._write(offset + begin, data if whole else data[begin:stop])
        self._zero(last, end)

    def settle(self) -> None:
        """Wait for all writes. Raises BackupError."""
        while self._in_flight:
            self._settle_first()

    def _write(self, offset: int, data: bytes) -> None:
        self._make_room(len(data))
        self._in_flight.append((len(data), self._image.start_write(offset, data)))
        self._room -= len(data)
        self.written += len(data)

    def _zero(self, start: int, end: int) -> None:
        if start < end and not self._fresh:
            self._make_room(0)
            self._in_flight.append((0, self._image.start_zeros(start, end - start)))

    def _make_room(self, length: int) -> None:
        while self._in_flight and (length > self._room or len(self._in_flight) >= WINDOW_READS):
            self._settle_first()

    def _settle_first(self) -> None:
        length, wait = self._in_flight.popleft()
        wait()
        self._room += length


def write_changed(
    reader: SnapshotReader, writer: PieceWriter, parts: ChangedParts, before: Checksums, progress: Progress
) -> Checksums:
    """Write the changed parts, and return the checksums of all: `before` has those of the other pieces.

    Whole pieces are read, as checksums are of pieces. Raises BackupError.
    """
    found = Checksums()
    reads = (parts.piece(number) for number in parts)
    with closing(backup_stream.read_ahead(reader, reads)) as pieces:
        for offset, data in pieces:
            if record := _record(offset, data):
                found.append(RECORD.pack(*record))
            writer.write(parts.part(offset // PIECE), offset, data)
            progress(offset + len(data))
    writer.settle()
    others = (one for one in before if one[0] < reader.size and one[0] // PIECE not in parts)
    return packed(merge(others, found))


def write_all(
    reader: SnapshotReader, writer: PieceWriter, before: Checksums, unknown: ChangedParts, progress: Progress
) -> Checksums:
    """Read the whole snapshot, write what differs from `before`, and return its checksums.

    `before` describes the image as it is, but for the pieces in `unknown`, which are written in any case.
    Raises BackupError.
    """
    checksums = Checksums()
    whole = ChangedParts(reader.size)
    with closing(backup_stream.pieces(reader)) as pieces:
        for number, offset, data, known in _together(pieces, before, unknown):
            record = _record(offset, data)
            if record:
                checksums.append(RECORD.pack(*record))
            if number in unknown or record != known:
                writer.write(whole.piece(number), offset, data)
            progress(offset + len(data))
    writer.settle()
    return checksums


def _together(
    pieces: Iterable[tuple[int, bytes]], before: Checksums, unknown: ChangedParts
) -> Iterator[tuple[int, int, bytes, Optional[Record]]]:
    """Yield (number, offset, data, record before) of each piece that has any of them, in order.

    An empty piece, which marks how far a listing has come, is one without data.
    """
    found: Iterable[tuple[int, int, object]] = merge(
        ((offset // PIECE, 0, (offset, data)) for offset, data in pieces),
        ((record[0] // PIECE, 1, record) for record in before if record[0] < unknown.size),
        ((number, 2, None) for number in unknown),
        key=itemgetter(0, 1),
    )
    for number, group in groupby(found, key=itemgetter(0)):
        offset, data, known = number * PIECE, b"", None
        for _, kind, one in group:
            if kind == 0 and one[1]:  # type: ignore[index]
                if data:
                    raise BackupError(f"the piece at {offset} was read twice", "report this as a bug")
                offset, data = one  # type: ignore[misc]
            elif kind == 1:
                known = one
        yield number, offset, data, known  # type: ignore[misc]


def _record(offset: int, data: bytes) -> Optional[Record]:
    """Return the record of a piece's data, from its first to its last byte that is not zero."""
    from_first = data.lstrip(b"\0")
    trimmed = from_first.rstrip(b"\0")
    if not trimmed:
        return None
    return offset + len(data) - len(from_first), len(trimmed), digest(trimmed)


def _runs(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (beginning, end, whether it is zeros) of runs of whole blocks within data[start:end]."""
    if ZERO_BLOCK not in data:
        if start < end:
            yield start, end, False
        return
    blocks = range(start, end, BLOCK)
    zeros = ((at, min(at + BLOCK, end), not data[at : min(at + BLOCK, end)].strip(b"\0")) for at in blocks)
    for is_zero, group in groupby(zeros, key=itemgetter(2)):
        run = list(group)
        yield run[0][0], run[-1][1], is_zero
