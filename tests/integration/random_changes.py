"""What happens to an image between two backups, at random."""

from __future__ import annotations

from random import Random
from typing import Any

KINDS = ("write", "write", "write", "discard", "zero")
LENGTHS = (1, 511, 4096, 70_000, 1 << 20, 5 << 20)


def change(image: Any, chance: Random, count: int, largest: int = 0) -> None:
    """Write, discard and zero an rbd.Image at random places, and give it other sizes up to `largest` bytes.

    0 leaves the size as it is.
    """
    kinds = (*KINDS, "resize") if largest else KINDS
    for _ in range(count):
        kind, size = chance.choice(kinds), image.size()
        offset = chance.randrange(size)
        length = min(chance.choice(LENGTHS), size - offset)
        if kind == "write":
            image.write(chance.randbytes(length), offset)
        elif kind == "discard":
            image.discard(offset, length)
        elif kind == "zero":
            image.write_zeroes(offset, length)
        else:
            image.resize(chance.randrange(1, largest))
