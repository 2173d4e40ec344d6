"""Writes a saved image's bytes into a new image: several writes in flight, zeros left out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Callable

from ..command import COMMAND
from ..errors import BackupError
from ..protocols import ImageWriter, Source, WrittenBytes
from ..system.pipe_reader import WriterEnded
from .backup_stream import READ_SIZE

PIECE = READ_SIZE  # checksums are of reads, and no read crosses a multiple of it
PIECES = 8  # pieces with writes in flight
ZERO_PAGE = bytes(4096)  # a disk's smallest allocation
ZERO_PIECE = bytes(PIECE)


def write_image(
    source: Source,
    size: int,
    writer: ImageWriter,
    progress: Callable[[int], None] = lambda done: None,
    compare: Callable[[bytearray], None] = lambda piece: None,
) -> int:
    """Write the source's bytes except zeros, and return how many were written.

    The image must be new, so that it reads as zeros where nothing is written. Memory is bounded by PIECES.
    `compare` gets each piece, holes included; it is valid during the call only.
    Raises BackupError, also if the source does not have exactly `size` bytes.
    """
    free = [bytearray(PIECE) for _ in range(PIECES)]
    in_flight: deque[tuple[bytearray, deque[Callable[[], None]]]] = deque()
    written = 0
    try:
        for offset in range(0, size, PIECE):
            if not free:
                _settle(in_flight[0][1])
                free.append(in_flight.popleft()[0])
            buffer = free.pop()
            piece = next_piece(source, buffer, offset, size)
            waits: deque[Callable[[], None]] = deque()
            in_flight.append((buffer, waits))
            compare(piece)
            for start, part in _not_zero(piece):
                waits.append(writer.start_write(offset + start, part))
                written += len(part)
            progress(offset + len(piece))
        require_end(source, size)
        for _, waits in in_flight:
            _settle(waits)
    finally:
        for _, waits in in_flight:  # librbd must not complete a write into a closed image
            _settle_despite_errors(waits)
    return written


def next_piece(source: Source, buffer: bytearray, offset: int, size: int) -> bytearray:
    """Read the source's next piece into the buffer and return it. Raises WriterEnded."""
    length = min(PIECE, size - offset)
    got = source.fill(memoryview(buffer)[:length])
    if got < length:
        raise WriterEnded(f"the output ended after {source.received} of {size} bytes")
    return buffer if length == PIECE else buffer[:length]


def require_end(source: Source, size: int) -> None:
    """Raise BackupError if the source has more bytes."""
    if source.fill(memoryview(bytearray(1))):
        message = f"the output has more bytes than the image's {size}"
        raise BackupError(message, f"choose another restore point: see `{COMMAND} restore-points`")


def _not_zero(piece: bytearray) -> Iterator[tuple[int, WrittenBytes]]:
    """Yield (offset, bytes) of the parts to be written, in runs of whole pages."""
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
    """Wait for each write once. Raises the error of the first that failed."""
    while waits:
        waits.popleft()()


def _settle_despite_errors(waits: deque[Callable[[], None]]) -> None:
    while waits:
        try:
            _settle(waits)
        except BackupError:
            continue  # the first error is already being raised
