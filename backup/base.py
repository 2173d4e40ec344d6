"""What a backup builds on that saves only what has changed: the last run's restore point and snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from .model import SavedImage
from .restore_point.checksums import Checksums


@dataclass(frozen=True)
class Base:
    """What was saved of an image before, and the name that the snapshot has which was kept for it.

    `times` are those of the saved image's segments, as the output packed them.
    """

    snapshot: str
    saved: SavedImage
    checksums: Checksums
    times: bytes
