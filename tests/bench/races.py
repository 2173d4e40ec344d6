"""The parts of the benchmark in which contestants save the same image: shapes, sizes, a slow network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from .bench import REPEATED, Bench, Costs, say
from .chart import draw
from .contestants import CONTESTANTS, EXPORT, LIMIT, LOOP, OURS, SHARED_LIMIT
from .measure import Cost
from .subjects import GIB, Subject, in_a_file, spread, subject
from .table import HEAD, cells, markdown, median

LATENCY = 0.001  # seconds that each read takes longer
GB = 1e9


def main_race(bench: Bench) -> str:
    """16 GiB, of which 2.5 GiB are data: all contestants, and the chart."""
    with subject(bench.lab, bench.directory, "main", 16 * GIB, spread(16 * GIB, int(2.5 * GIB))) as made:
        with in_a_file(bench.lab, made):
            costs = bench.race("main", made, list(CONTESTANTS))
        draw(costs, bench.chart)
        return _table(costs, (EXPORT, LIMIT, SHARED_LIMIT)) + _cpu_of_ours(costs[REPEATED, OURS], made)


def fragments(bench: Bench) -> str:
    """4 GiB with 4 KiB of data in every other object."""
    data = dict.fromkeys(range(0, 4 * GIB, 8 << 20), 4096)
    with subject(bench.lab, bench.directory, "fragments", 4 * GIB, data) as made:
        return _table(bench.race("fragments", made, (LOOP, EXPORT, OURS)), (EXPORT,))


def latency(bench: Bench) -> str:
    """4 GiB, of which 1 GiB is data: each reply of the OSD comes about 1 ms later."""
    conf = bench.directory / "slow" / "ceph.conf"
    conf.parent.mkdir()
    # Evenly spread between nothing and the most (src/msg/async/AsyncConnection.cc).
    delays = {"type": "osd", "max": 2 * LATENCY, "probability": 1}
    lines = [f"ms inject delay {name} = {value}\n" for name, value in delays.items()]
    conf.write_text(bench.lab.ceph_conf.read_text() + "\n[client]\n" + "".join(lines))
    with subject(bench.lab, bench.directory, "latency", 4 * GIB, spread(4 * GIB, GIB)) as made:
        names = (LOOP, EXPORT, OURS)
        quick = bench.race("latency none", made, names, rounds=1)
        slow = bench.race("latency 1 ms", made, names, conf, rounds=1)
    rows = []
    for (kind, name), cost in slow.items():
        seconds = quick[kind, name].seconds
        rows.append(
            (kind, name, f"{seconds:.1f} s", f"{cost.seconds:.1f} s", f"{cost.seconds - seconds:+.1f} s")
        )
    return markdown(("backup", "contestant", "as it is", "with 1 ms more", "difference"), rows)


def sizes(bench: Bench) -> str:
    """1 GiB of data in images of all sizes; `rbd export` up to 16 GiB, beyond which it takes too long."""
    rows: list[Sequence[str]] = []
    for size in (1, 16, 256, 1024):
        data = spread(size * GIB, GIB)
        with subject(bench.lab, bench.directory, f"size-{size}", size * GIB, data) as made:
            names = (EXPORT, OURS) if size <= 16 else (OURS,)
            costs = bench.race(f"{size} GiB", made, names, rounds=1)
        rows += [
            (f"{size} GiB", kind, name, f"{made.size / cost.seconds / GB:.1f} GB/s", *cells(cost))
            for (kind, name), cost in costs.items()
        ]
    return markdown(("image", "backup", "contestant", "rate", *HEAD), rows)


def domains(bench: Bench) -> str:
    """Four domains with 4 GiB each, of which 512 MiB are data, saved 1, 2 and 4 at a time."""
    with ExitStack() as stack:
        made = [
            stack.enter_context(
                subject(bench.lab, bench.directory, f"domain-{number}", 4 * GIB, spread(4 * GIB, GIB // 2))
            )
            for number in range(4)
        ]
        return markdown(
            ("at a time", "rate", *HEAD),
            [
                (str(workers), f"{sum(one.data for one in made) / cost.seconds / GB:.2f} GB/s", *cells(cost))
                for workers, cost in _costs_of_workers(bench, made).items()
            ],
        )


def _costs_of_workers(bench: Bench, made: Sequence[Subject]) -> Mapping[int, Cost]:
    """Save all of them again and again, with so many workers."""
    contestant = bench.contestant("domains")
    contestant.empty()
    names, restic = [one.name for one in made], str(contestant.restic.path)
    costs: dict[int, list[Cost]] = {1: [], 2: [], 4: []}
    contestant.run(contestant.node.command("backup", *names, RESTIC_BINARY=restic))
    for _ in range(bench.rounds):
        for workers, found in costs.items():
            command = contestant.node.command("backup", *names, RESTIC_BINARY=restic, WORKERS=workers)
            found.append(contestant.run(command))
            say(f"domains, {workers} at a time: {found[-1].seconds:.1f} s")
    contestant.remove()
    return {workers: median(found) for workers, found in costs.items()}


def _table(costs: Costs, against: Sequence[str]) -> str:
    """Lay the medians out, with ratios to others'."""
    rows = []
    for (kind, name), cost in costs.items():
        ratios = [f"{cost.seconds / costs[kind, other].seconds:.2f}" for other in against]
        rows.append((kind, name, *ratios, *cells(cost)))
    return markdown(("backup", "contestant", *(f"to {one}" for one in against), *HEAD), rows)


def _cpu_of_ours(cost: Cost, made: Subject) -> str:
    allowed = 0.6 * made.data / GB + 0.06 * (made.size - made.data) / GB
    return (
        f"\n{OURS}, repeated: {cost.own_cpu:.1f} s of processor beside restic; {allowed:.1f} s are allowed.\n"
    )
