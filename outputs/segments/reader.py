"""Reads one segment for FUSE: reads ahead, and computes checksums."""

from __future__ import annotations

from collections.abc import Generator
from typing import Union

from backup.model import Extent
from backup.protocols import SnapshotReader
from backup.restore_point.checksums import Checksums
from backup.transfer import backup_stream

ZEROS = memoryview(bytes(1 << 20))  # the kernel's largest request

Answer = Union[bytes, memoryview]


class SegmentReader:
    """Reads a segment's bytes at any offset; sequential reads are read ahead.

    `checksums` are those of the bytes read sequentially from the first one; `complete` if that was all.
    """

    def __init__(self, reader: SnapshotReader, segment: Extent) -> None:
        self._reader = reader
        self._segment = segment
        self._end = segment.offset + segment.length
        self._begin(segment.offset)

    @property
    def complete(self) -> bool:
        return self._whole and self._position == self._end

    def _begin(self, position: int) -> None:
        self._whole = position == self._segment.offset
        self._position = position
        self.checksums = Checksums()
        self._pieces: Generator[tuple[int, bytes], None, None] | None = None
        self._offset, self._data = position, b""  # the current or next piece

    def at_once(self, offset: int, length: int) -> Answer | None:
        """Return up to `length` bytes at an offset, b"" at the end; None if `load` must be called first."""
        position = self._segment.offset + offset
        if position >= self._end:
            return b""
        if position != self._position or self._pieces is None:
            return None
        answer: Answer
        if position < self._offset:
            answer = ZEROS[: min(length, self._offset - position)]
        else:
            start = position - self._offset
            answer = memoryview(self._data)[start : start + length]
        if not answer:
            return None
        self._position += len(answer)
        return answer

    def load(self, offset: int) -> None:
        """Wait for the next piece. Raises BackupError."""
        position = self._segment.offset + offset
        if position != self._position or self._pieces is None:
            self.close()
            self._begin(position)
            self._pieces = backup_stream.pieces(self._reader, Extent(position, self._end - position))
        try:
            piece = next(self._pieces, None)
        except BaseException:  # whatever it was, the generator has ended
            self._pieces = None  # on a second read the rest would look like a hole
            raise
        if piece:
            self._offset, self._data = piece
            if self._data:  # an empty piece marks a hole
                self.checksums.add(*piece)
        else:
            self._offset, self._data = self._end, b""

    def close(self) -> None:
        """Read no further ahead; reads in flight end with the snapshot's reader."""
        if self._pieces is not None:
            self._pieces.close()


class ZerosReader:
    """Reads the file of zeros."""

    complete = False  # not a segment
    checksums = Checksums()

    def __init__(self, size: int) -> None:
        self._size = size

    def at_once(self, offset: int, length: int) -> Answer:
        return ZEROS[: max(0, min(length, self._size - offset))]

    def load(self, offset: int) -> None:
        raise AssertionError("it always has an answer")

    def close(self) -> None:
        pass
