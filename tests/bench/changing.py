"""What a backup costs when little has changed: restic_incremental beside the streaming output."""

from __future__ import annotations

import random
from collections.abc import Sequence

import rados
import rbd

from tests.lab import Lab

from .bench import Bench, say
from .contestants import OURS, Contestant
from .measure import Cost
from .subjects import GIB, OBJECT, POOL, Subject, spread, subject
from .table import HEAD, cells, markdown, median

INCREMENTAL = "restic_incremental"
FIRST, NOTHING = "first backup", "nothing changed"
RATES = (0.001, 0.01, 0.1)  # of the objects that have data


def changing(bench: Bench) -> str:
    """16 GiB, of which 2.5 GiB are data: first, unchanged, and with some objects changed."""
    data = spread(16 * GIB, int(2.5 * GIB))
    costs: dict[tuple[str, str], list[Cost]] = {}
    with subject(bench.lab, bench.directory, "changing", 16 * GIB, data) as made:
        streams, counts = bench.contestant("changing restic"), bench.contestant("changing incremental")
        for number in range(bench.rounds):
            streams.empty()
            counts.empty()
            _run(streams, made, "restic", FIRST, costs, number)
            _run(counts, made, INCREMENTAL, FIRST, costs, number)
            _run(streams, made, "restic", NOTHING, costs, number)
            _run(counts, made, INCREMENTAL, NOTHING, costs, number)
            for rate in RATES:
                for kind, offsets in drawn(list(data), rate).items():
                    overwrite(bench.lab, made, offsets)
                    _run(counts, made, INCREMENTAL, f"{rate:.1%} changed, {kind}", costs, number)
            counts.run(counts.node.command("cleanup", "--all"))
        streams.remove()
        counts.remove()
    return _table(costs)


def terabyte(bench: Bench) -> str:
    """1 TiB sparse with 1 GiB of data: nothing changed."""
    costs: dict[tuple[str, str], list[Cost]] = {}
    with subject(bench.lab, bench.directory, "terabyte", 1 << 40, spread(1 << 40, GIB)) as made:
        counts = bench.contestant("terabyte incremental")
        counts.empty()
        _run(counts, made, INCREMENTAL, FIRST, costs, 0)
        for number in range(bench.rounds):
            _run(counts, made, INCREMENTAL, NOTHING, costs, number)
        counts.run(counts.node.command("cleanup", "--all"))
        counts.remove()
    return _table(costs)


def _run(
    contestant: Contestant,
    made: Subject,
    output: str,
    kind: str,
    costs: dict[tuple[str, str], list[Cost]],
    number: int,
) -> None:
    constants = {"RESTIC_BINARY": str(contestant.restic.path), "OUTPUT": output}
    cost = contestant.run(contestant.node.command("backup", made.name, **constants))
    costs.setdefault((kind, output), []).append(cost)
    say(f"round {number + 1}: {output}, {kind}: {cost.seconds:.1f} s")


def drawn(offsets: Sequence[int], rate: float) -> dict[str, Sequence[int]]:
    """Draw objects: neighbours among those that have data, and some from everywhere."""
    count = max(1, int(len(offsets) * rate))
    start = random.randrange(len(offsets) - count + 1)
    return {"clustered": offsets[start : start + count], "scattered": random.sample(offsets, count)}


def overwrite(lab: Lab, made: Subject, offsets: Sequence[int]) -> None:
    with (
        rados.Rados(conffile=str(lab.ceph_conf)) as cluster,
        cluster.open_ioctx(POOL) as pool,
        rbd.Image(pool, made.name) as image,
    ):
        for offset in offsets:
            image.write(random.randbytes(OBJECT), offset)


def _table(costs: dict[tuple[str, str], list[Cost]]) -> str:
    medians = {key: median(found) for key, found in costs.items()}
    rows = []
    for (kind, output), cost in medians.items():
        other = medians.get((NOTHING, "restic")) if kind != FIRST else medians.get((FIRST, "restic"))
        ratio = f"{cost.seconds / other.seconds:.2f}" if other else "-"
        rows.append((kind, OURS if output == "restic" else output, ratio, *cells(cost)))
    return markdown(("backup", "output", "to streaming", *HEAD), rows)
