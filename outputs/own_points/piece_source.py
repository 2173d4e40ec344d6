"""An image of a restore point that is read in order, with reads in flight."""

from __future__ import annotations

from typing import Callable

from backup.model import Extent
from backup.protocols import ImageReads
from backup.transfer import backup_stream

from .changed_parts import PIECE


class PieceSource:
    """Reads an image from its beginning. Satisfies backup.protocols.Source.

    A context manager: after its block no read is waited for.
    """

    def __init__(self, reader: ImageReads, check_stop: Callable[[], None]) -> None:
        self.received = 0
        starts = range(0, reader.size, PIECE)
        reads = (Extent(start, min(PIECE, reader.size - start)) for start in starts)
        self._pieces = backup_stream.read_ahead(reader, reads)
        self._piece = memoryview(b"")
        self._check_stop = check_stop

    def __enter__(self) -> PieceSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._pieces.close()

    def fill(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            if not self._piece:
                self._check_stop()
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._piece = memoryview(piece[1])
            part = self._piece[: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            self._piece = self._piece[len(part) :]
            filled += len(part)
        self.received += filled
        return filled
