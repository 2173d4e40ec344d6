"""Which parts of an image have to be written: at most one in each piece, so that memory is bounded."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from backup.model import Extent
from backup.transfer.backup_stream import READ_SIZE

PIECE = READ_SIZE  # checksums are of pieces


class ChangedParts:
    """The parts of an image of `size` bytes that were added: 8 bytes of memory for each piece."""

    def __init__(self, size: int) -> None:
        self.size = size
        count = -(-size // PIECE)
        self._starts = array("I", [0]) * count
        self._ends = array("I", [0]) * count  # 0: nothing of this piece

    def add(self, extent: Extent) -> None:
        """Add an extent; what is between two parts of the same piece is added with them."""
        end = min(extent.offset + extent.length, self.size)
        if extent.offset >= end:
            return
        for number in range(extent.offset // PIECE, -(-end // PIECE)):
            first = max(extent.offset - number * PIECE, 0)
            last = min(end - number * PIECE, PIECE)
            known = self._ends[number]
            self._starts[number] = min(self._starts[number], first) if known else first
            self._ends[number] = max(known, last)

    def add_pieces(self, extents: Iterable[Extent]) -> None:
        """Add all pieces that these extents touch, as a whole."""
        for extent in extents:
            start = extent.offset // PIECE * PIECE
            end = -(-(extent.offset + extent.length) // PIECE) * PIECE
            self.add(Extent(start, end - start))

    def part(self, number: int) -> Extent:
        """Return the part of a piece that was added, empty if there is none."""
        start = self._starts[number]
        return Extent(number * PIECE + start, self._ends[number] - start)

    def piece(self, number: int) -> Extent:
        """Return a whole piece."""
        start = number * PIECE
        return Extent(start, min(PIECE, self.size - start))

    def __contains__(self, number: int) -> bool:
        return bool(self._ends[number])

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the pieces with a part, in ascending order."""
        return (number for number, end in enumerate(self._ends) if end)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def read_bytes(self) -> int:
        """The size of all pieces with a part."""
        return sum(self.piece(number).length for number in self)

    def unchanged(self) -> Sequence[Extent]:
        """Return the other pieces, those that are adjacent as one extent."""
        found: list[Extent] = []
        start = None
        for number in range(len(self._ends) + 1):
            if number < len(self._ends) and not self._ends[number]:
                start = number if start is None else start
            elif start is not None:
                found.append(Extent(start * PIECE, min(number * PIECE, self.size) - start * PIECE))
                start = None
        return found
