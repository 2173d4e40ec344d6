"""Medians of many measurements, and tables of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .measure import Cost

HEAD = ("time", "restic's CPU", "other CPU", "memory")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(cost: Cost) -> Sequence[str]:
    """Give what belongs under HEAD."""
    return (
        f"{cost.seconds:.1f} s",
        f"{cost.restic_cpu:.1f} s",
        f"{cost.own_cpu:.1f} s",
        f"{cost.memory / 1e6:.0f} MB",
    )


def median(costs: Sequence[Cost]) -> Cost:
    """Give the medians, and of memory the largest."""
    return Cost(
        statistics.median(cost.seconds for cost in costs),
        statistics.median(cost.restic_cpu for cost in costs),
        statistics.median(cost.own_cpu for cost in costs),
        max(cost.memory for cost in costs),
    )
