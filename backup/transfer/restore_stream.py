"""A saved image's bytes on their way back: writes in flight, and zeros left out, so that thin stays thin."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Callable

from .. import PROGRAM
from ..errors import BackupError
from ..protocols import ImageWriter, Source, WrittenBytes
from ..system.pipe_reader import WriterEnded
from .backup_stream import READ_SIZE

PIECE = READ_SIZE  # checksums are of reads, of which none crosses a multiple of it
PIECES = 8  # of which writes are under way
ZERO_PAGE = bytes(4096)  # what a disk allocates at the least
ZERO_PIECE = bytes(PIECE)


def write_image(
    source: Source, size: int, writer: ImageWriter, progress: Callable[[int], None] = lambda done: None
) -> int:
    """Write the source's bytes, those that are not zero, and return how many were written.

    The image has to be new: it reads as zeros where nothing is written. Memory is bounded by PIECES. Raises
    BackupError, also where the source does not give exactly `size` bytes.
    """
    free = [bytearray(PIECE) for _ in range(PIECES)]
    under_way: deque[tuple[bytearray, deque[Callable[[], None]]]] = deque()
    written = 0
    try:
        for offset in range(0, size, PIECE):
            if not free:
                _settle(under_way[0][1])
                free.append(under_way.popleft()[0])
            buffer = free.pop()
            piece = next_piece(source, buffer, offset, size)
            waits: deque[Callable[[], None]] = deque()
            under_way.append((buffer, waits))
            for start, part in _not_zero(piece):
                waits.append(writer.start_write(offset + start, part))
                written += len(part)
            progress(offset + len(piece))
        require_end(source, size)
        for _, waits in under_way:
            _settle(waits)
    finally:
        for _, waits in under_way:  # librbd must not complete into an image that is closed
            _settle_whatever_comes(waits)
    return written


def next_piece(source: Source, buffer: bytearray, offset: int, size: int) -> bytearray:
    """Give the source's next piece, in the buffer where it is a whole one. Raises WriterEnded."""
    length = min(PIECE, size - offset)
    got = source.fill(memoryview(buffer)[:length])
    if got < length:
        raise WriterEnded(f"the output gave {source.received} bytes of {size}")
    return buffer if length == PIECE else buffer[:length]


def require_end(source: Source, size: int) -> None:
    """Raise BackupError if there is more to come."""
    if source.fill(memoryview(bytearray(1))):
        message = f"the output gave more than the {size} bytes of the image"
        raise BackupError(message, f"another restore point may do; see {PROGRAM} restore-points")


def _not_zero(piece: bytearray) -> Iterator[tuple[int, WrittenBytes]]:
    """Yield (offset, bytes) of what has to be written, in runs of whole pages."""
    if piece == ZERO_PIECE:
        return
    if len(piece) == PIECE and ZERO_PAGE not in piece:
        yield 0, piece
        return
    start = -1
    for page in range(0, len(piece), len(ZERO_PAGE)):
        if piece.startswith(ZERO_PAGE[: len(piece) - page], page):
            if start >= 0:
                yield start, bytes(piece[start:page])
            start = -1
        elif start < 0:
            start = page
    if start >= 0:
        yield start, bytes(piece[start:])


def _settle(waits: deque[Callable[[], None]]) -> None:
    """Wait for each write once, whatever becomes of it."""
    while waits:
        waits.popleft()()


def _settle_whatever_comes(waits: deque[Callable[[], None]]) -> None:
    while waits:
        try:
            _settle(waits)
        except BackupError:
            continue  # the first error is on its way already
