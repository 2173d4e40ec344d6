"""A snapshot's bytes on their way to an output: reads in flight, holes without reading."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Callable

from ..errors import BackupError
from ..model import Extent
from ..protocols import SnapshotReader
from ..restore_point.checksums import Checksums
from ..system.pipe_writer import PipeWriter

READ_SIZE = 4 << 20  # bytes; an RBD object's usual size
# In flight at a time: eight reads of 4 MiB have 2.3 times the throughput of one, and 16 bring no more. Small
# ones, of an image whose data is scattered, are many in these bytes: a network's latency is theirs too.
WINDOW_BYTES = 32 << 20
WINDOW_READS = 64
HOLE_STEP = 1 << 30  # bytes of a hole between two reports of progress


@dataclass(frozen=True)
class Copied:
    """How many bytes of a snapshot were read, and the checksums of what was sent."""

    data_bytes: int
    checksums: Checksums


def pieces(reader: SnapshotReader, within: Extent | None = None) -> Generator[tuple[int, bytes], None, None]:
    """Yield (offset, data) of all data, or of those in an extent, in order; what is not yielded is a hole.

    A piece never crosses a multiple of READ_SIZE, and each such part of the image gives one at the most. One
    without data tells how far all is known: the rest of a hole may take minutes to be listed.
    """
    with closing(reader.extents(within)) as extents, closing(_reads(extents)) as reads:
        yield from read_ahead(reader, reads)


def copy(
    reader: SnapshotReader, sink: PipeWriter, progress: Callable[[int], None] = lambda done: None
) -> Copied:
    """Send the whole snapshot, holes as zeros.

    Memory is bounded by WINDOW_BYTES, what the sink keeps, and the checksums (7 bytes per MiB). Raises
    BackupError.
    """
    data_bytes, checksums = 0, Checksums()
    with closing(pieces(reader)) as coming:
        for offset, data in coming:
            if offset < sink.sent:
                raise BackupError(f"the extents at {offset} overlap, {sink.sent} bytes are sent already")
            _fill(sink, offset, progress)
            if data:
                checksums.note(offset, data)
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

    What tells how far all is listed, an extent of no bytes, goes on as a read of none.
    """
    start = end = 0
    for extent in extents:
        offset, stop = extent.offset, extent.offset + extent.length
        if not extent.length:
            if end:
                yield Extent(start, end - start)
            start = end = 0
            yield extent
        while offset < stop:
            piece_end = min(stop, (offset // READ_SIZE + 1) * READ_SIZE)
            if end and offset // READ_SIZE == start // READ_SIZE:
                end = max(end, piece_end)
            else:
                if end:
                    yield Extent(start, end - start)
                start, end = offset, piece_end
            offset = piece_end
    if end:
        yield Extent(start, end - start)


def read_ahead(reader: SnapshotReader, reads: Iterator[Extent]) -> Generator[tuple[int, bytes], None, None]:
    """Yield (offset, data) in order, with as many reads under way as the window has room for.

    A read of no bytes gives none, as soon as those before it are there.
    """
    pending: deque[tuple[Extent, Callable[[], bytes]]] = deque()
    room = WINDOW_BYTES
    try:
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
    finally:
        for _, wait in pending:
            _settled(wait)


def _settled(wait: Callable[[], bytes]) -> None:
    try:
        wait()
    except BackupError:
        return  # the first error is on its way already
