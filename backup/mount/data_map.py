"""Where a saved image has data: the manifest's checksums know its holes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ..restore_point.checksums import Checksums
from ..stored import Packed
from ..transfer.restore_stream import PIECE


@dataclass(frozen=True)
class DataMap:
    """Knows which parts of an image have data. `checksums` is None if any part may have."""

    checksums: Optional[Checksums]

    @classmethod
    def from_manifest(cls, packed: Packed, data_bytes: int) -> DataMap:
        """Return the map of an image with so much data; one without all its checksums knows no holes."""
        records = Checksums(packed)
        complete = sum(length for _, length, _ in records) == data_bytes
        return cls(records if complete else None)

    def has_data(self, offset: int, length: int) -> bool:
        """Return whether a range within one PIECE of the image may have data; if not, it reads as zeros."""
        if self.checksums is None:
            return True
        piece = offset - offset % PIECE
        record = self.checksums.first_in(piece, piece + PIECE)
        return record is not None and record[0] < offset + length and record[0] + record[1] > offset
