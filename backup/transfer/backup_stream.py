"""Streams a snapshot to an output: several reads in flight, holes without reading."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Callable

from ..errors import BackupError
from ..model import Extent
from ..protocols import ImageReads, SnapshotReader
from ..restore_point.checksums import Checksums
from ..system.pipe_writer import PipeWriter

READ_SIZE = 4 << 20  # bytes; an RBD object's usual size
# In flight at a time: eight reads of 4 MiB have 2.3 times the throughput of one, 16 have no more. Reads of
# scattered data are small, with the same network latency each: of them there are up to WINDOW_READS.
WINDOW_BYTES = 32 << 20
WINDOW_READS = 64
HOLE_STEP = 1 << 30  # bytes of a hole between two reports of progress


@dataclass(frozen=True)
class Copied:
    """How many bytes of a snapshot were read, and the checksums of what was sent."""

    data_bytes: int
    checksums: Checksums


def pieces(reader: SnapshotReader, within: Extent | None = None) -> Generator[tuple[int, bytes], None, None]:
    """Yield (offset, data) of all data, or of the data in an extent, in order; the rest is holes.

    A piece never crosses a multiple of READ_SIZE, and there is at most one in each such part of the image. An
    empty piece marks how far the listing has come: listing a large hole may take minutes.
    """
    with closing(reader.extents(within)) as extents, closing(_reads(extents)) as reads:
        yield from read_ahead(reader, reads)


def copy(
    reader: SnapshotReader, sink: PipeWriter, progress: Callable[[int], None] = lambda done: None
) -> Copied:
    """Send the whole snapshot, holes as zeros.

    Memory is bounded by WINDOW_BYTES, the sink's buffers and the checksums (7 bytes per MiB). Raises
    BackupError.
    """
    data_bytes, checksums = 0, Checksums()
    with closing(pieces(reader)) as all_pieces:
        for offset, data in all_pieces:
            if offset < sink.sent:
                raise BackupError(f"overlapping extents at {offset}: {sink.sent} bytes are already sent")
            _fill(sink, offset, progress)
            if data:
                checksums.add(offset, data)
                sink.write(data)
                data_bytes += len(data)
            progress(sink.sent)
    _fill(sink, reader.size, progress)
    progress(sink.sent)
    return Copied(data_bytes, checksums)


def _fill(sink: PipeWriter, end: int, progress: Callable[[int], None]) -> None:
    """Send zeros up to this offset."""
    while end - sink.sent > HOLE_STEP:
        sink.write_zeros(HOLE_STEP)
        progress(sink.sent)
    sink.write_zeros(end - sink.sent)


def _reads(extents: Iterable[Extent]) -> Generator[Extent, None, None]:
    """Turn extents into reads: from the first to the last data in each READ_SIZE piece of the image.

    An empty extent, which marks how far the listing has come, becomes an empty read.
    """
    start = end = 0
    for part in _cut(extents):
        if not part.length and part.offset % READ_SIZE:
            continue  # it must not cut a piece in two: listings end within one where objects are smaller
        if part.length and end and part.offset // READ_SIZE == start // READ_SIZE:
            end = max(end, part.offset + part.length)
            continue
        if end:
            yield Extent(start, end - start)
        start, end = part.offset, part.offset + part.length
        if not part.length:
            start = end = 0
            yield part
    if end:
        yield Extent(start, end - start)


def _cut(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Cut extents at multiples of READ_SIZE."""
    for extent in extents:
        offset, end = extent.offset, extent.offset + extent.length
        if not extent.length:
            yield extent
        while offset < end:
            part_end = min(end, (offset // READ_SIZE + 1) * READ_SIZE)
            yield Extent(offset, part_end - offset)
            offset = part_end


def read_ahead(reader: ImageReads, reads: Iterator[Extent]) -> Generator[tuple[int, bytes], None, None]:
    """Yield (offset, data) in order, with as many reads in flight as the window allows.

    An empty read yields an empty piece after those before it. Reads in flight after an error, or when the
    generator is closed, end when the reader is closed: here they might be repeated for minutes.
    """
    pending: deque[tuple[Extent, Callable[[], bytes]]] = deque()
    room = WINDOW_BYTES
    for read in reads:
        while pending and (not read.length or read.length > room or len(pending) == WINDOW_READS):
            first, wait = pending.popleft()
            yield first.offset, wait()
            room += first.length
        if not read.length:
            yield read.offset, b""
            continue
        pending.append((read, reader.start_read(read.offset, read.length)))
        room -= read.length
    while pending:
        first, wait = pending.popleft()
        yield first.offset, wait()
