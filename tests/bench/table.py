"""Medians and ratios of many measurements, as a table and as a chart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .contestants import EXPORT, LIMIT
from .measure import Cost

GB = 1e9


@dataclass(frozen=True)
class Row:
    """The medians of one contestant in one kind of backup."""

    contestant: str
    kind: str
    seconds: float
    own_cpu: float
    restic_cpu: float
    memory: int


def rows(costs: Mapping[tuple[str, str], Sequence[Cost]]) -> Sequence[Row]:
    """Take the medians of the costs, which are by contestant and kind."""
    return [
        Row(
            contestant,
            kind,
            statistics.median(cost.seconds for cost in of),
            statistics.median(cost.own_cpu for cost in of),
            statistics.median(cost.restic_cpu for cost in of),
            max(cost.memory for cost in of),
        )
        for (contestant, kind), of in costs.items()
    ]


def markdown(found: Sequence[Row]) -> str:
    """Lay the rows out, with ratios to what an admin would pick instead, and to what can't be beaten."""
    lines = [
        "| backup | contestant | time | to rbd export | to the limit | restic's CPU | other CPU | memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        times = {other.contestant: other.seconds for other in found if other.kind == row.kind}
        ratios = [f"{row.seconds / times[name]:.2f}" for name in (EXPORT, LIMIT)]
        cells = (
            *(row.kind, row.contestant, f"{row.seconds:.1f} s", *ratios),
            *(f"{row.restic_cpu:.1f} s", f"{row.own_cpu:.1f} s", f"{row.memory / 1e6:.0f} MB"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
