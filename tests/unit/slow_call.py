"""A call that takes a while, and counts how often it is made at once."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Callable

from backup.model import Image


@dataclass
class SlowCall:
    """Stands in for a call about an image, which takes a hundredth of a second longer."""

    call: Callable[[Image], list[str]]
    _under_way: list[Image] = field(default_factory=list)
    _at_once: list[int] = field(default_factory=list)

    def __call__(self, image: Image) -> list[str]:
        self._under_way.append(image)
        self._at_once.append(len(self._under_way))
        time.sleep(0.01)
        self._under_way.pop()
        return self.call(image)

    @property
    def at_once(self) -> float:
        """How many were under way, on average."""
        return sum(self._at_once) / len(self._at_once)
