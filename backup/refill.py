"""A saved image's bytes on their way back: writes in flight, and zeros left out, so that thin stays thin."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Callable

from .errors import BackupError
from .pipe_source import WriterEnded
from .protocols import ImageWriter, Source, WrittenBytes

PIECE = 4 << 20  # bytes; an RBD object's usual size, and aligned to it
PIECES = 8  # of which writes are under way
ZERO_PAGE = bytes(4096)  # what a disk allocates at the least
ZERO_PIECE = bytes(PIECE)


def refill(
    source: Source, size: int, writer: ImageWriter, progress: Callable[[int], None] = lambda done: None
) -> int:
    """Write the source's bytes, those that are not zero, and return how many were written.

    The image has to be new: it reads as zeros where nothing is written. Memory is bounded by PIECES. Raises
    BackupError, also where the source does not give exactly `size` bytes.
    """
    free = [bytearray(PIECE) for _ in range(PIECES)]
    under_way: deque[tuple[bytearray, Sequence[Callable[[], None]]]] = deque()
    written = 0
    try:
        for offset in range(0, size, PIECE):
            if not free:
                buffer, waits = under_way.popleft()
                _settle(waits)
                free.append(buffer)
            buffer = free.pop()
            piece = filled(source, buffer, offset, size)
            waits = []
            under_way.append((buffer, waits))
            for start, part in _not_zero(piece):
                waits.append(writer.start_write(offset + start, part))
                written += len(part)
            progress(offset + len(piece))
        require_end(source, size)
        while under_way:
            _settle(under_way.popleft()[1])
    finally:
        for _, waits in under_way:  # librbd must not complete into an image that is closed
            _settle_whatever_comes(waits)
    return written


def filled(source: Source, buffer: bytearray, offset: int, size: int) -> bytearray:
    """Give the source's next piece, in the buffer where it is a whole one. Raises WriterEnded."""
    length = min(PIECE, size - offset)
    got = source.fill(memoryview(buffer)[:length])
    if got < length:
        raise WriterEnded(f"the output gave {source.received} bytes of {size}")
    return buffer if length == PIECE else buffer[:length]


def require_end(source: Source, size: int) -> None:
    """Raise BackupError if there is more to come."""
    if source.fill(memoryview(bytearray(1))):
        raise BackupError(f"the output gave more than the {size} bytes of the image")


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


def _settle(waits: Sequence[Callable[[], None]]) -> None:
    for wait in waits:
        wait()


def _settle_whatever_comes(waits: Sequence[Callable[[], None]]) -> None:
    for wait in waits:
        try:
            wait()
        except BackupError:
            continue  # the first error is on its way already
