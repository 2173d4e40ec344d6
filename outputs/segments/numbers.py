"""Sets of segment numbers: a byte for each segment, as an image may have half a million of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

IN, OUT = b"\1", b"\0"


class Numbers(Collection[int]):
    """A set of numbers from 0 to `limit`, itself not in it."""

    def __init__(self, limit: int, every: bool = False) -> None:
        """Without any number, or with all of them."""
        self._flags = bytearray((IN if every else OUT) * limit)

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 0 <= number < len(self._flags) and bool(self._flags[number])

    def __iter__(self) -> Iterator[int]:
        number = self._flags.find(IN)
        while number >= 0:
            yield number
            number = self._flags.find(IN, number + 1)

    def __len__(self) -> int:
        return self._flags.count(IN)

    def add(self, number: int) -> None:
        self._flags[number] = 1

    def update(self, numbers: range) -> None:
        """Add consecutive numbers; those past the limit are ignored."""
        end = min(numbers.stop, len(self._flags))
        self._flags[numbers.start : end] = IN * max(0, end - numbers.start)

    def discard(self, number: int) -> None:
        self._flags[number] = 0

    def clear(self) -> None:
        self._flags = bytearray(len(self._flags))

    def others(self) -> Numbers:
        """Return those up to the limit that are not in it."""
        others = Numbers(0)
        others._flags = self._flags.translate(bytes([1, 0]) + bytes(254))
        return others

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield (first, last) of each run of consecutive numbers."""
        first = self._flags.find(IN)
        while first >= 0:
            end = self._flags.find(OUT, first)
            end = len(self._flags) if end < 0 else end
            yield first, end - 1
            first = self._flags.find(IN, end)
