"""What a round finds: an invariant that does not hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """An invariant, and what was found instead."""

    invariant: str
    found: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.found}"


class LabBroken(Exception):
    """The lab itself does not recover: nothing is known of the program."""
