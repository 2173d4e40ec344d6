"""What a backup of a large image reads when little has changed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import rados
import rbd

from tests.lab import Lab

from .bench import Bench, say
from .contestants import Contestant
from .measure import Cost
from .subjects import GIB, OBJECT, POOL, Subject, subject
from .table import HEAD, cells, markdown

SIZES = (256, 1024, 4096)  # GiB
RATES = (0.001, 0.01, 0.05)  # of the objects
DATA = 4096  # bytes in each object: a cluster of one disk has no room for more
FIRST, NOTHING = "first backup", "nothing changed"


def large(bench: Bench) -> str:
    """256 GiB, 1 TiB and 4 TiB with 4 KiB in each object: unchanged, and some objects changed.

    `read` is how many objects are read for each one that has changed.
    """
    rows: list[Sequence[str]] = []
    for size in SIZES:
        data = dict.fromkeys(range(0, size * GIB, OBJECT), DATA)
        with subject(bench.lab, bench.directory, f"large-{size}", size * GIB, data) as made:
            contestant = bench.contestant(f"large {size}")
            contestant.empty()
            for kind, changed in _kinds([*data]):
                _overwrite(bench.lab, made, changed)
                cost, read = _run(contestant, made)
                ratio = f"{read / (len(changed) * DATA):.2f}" if changed else "-"
                rows.append((f"{size} GiB", kind, ratio, *cells(cost)))
                say(f"{size} GiB, {kind}: {cost.seconds:.1f} s, read {ratio}")
            contestant.run(contestant.node.command("cleanup", "--all"))
            contestant.remove()
    return markdown(("image", "backup", "read", *HEAD), rows)


def _kinds(offsets: Sequence[int]) -> Sequence[tuple[str, Sequence[int]]]:
    """Return what is measured, with the offsets of the objects that change before it."""
    kinds: list[tuple[str, Sequence[int]]] = [(FIRST, ()), (NOTHING, ())]
    for rate in RATES:
        count = max(1, int(len(offsets) * rate))
        start = random.randrange(len(offsets) - count + 1)
        kinds.append((f"{rate:.1%} changed, clustered", offsets[start : start + count]))
        kinds.append((f"{rate:.1%} changed, scattered", sorted(random.sample(offsets, count))))
    return kinds


def _run(contestant: Contestant, made: Subject) -> tuple[Cost, int]:
    """Back it up; return what that cost, and how many bytes were read."""
    report = contestant.node.directory / "report.json"
    constants = {
        "RESTIC_BINARY": str(contestant.restic.path),
        "OUTPUT": "restic_incremental",
        "REPORT_FILE": str(report),
    }
    cost = contestant.run(contestant.node.command("backup", made.name, **constants))
    (domain,) = json.loads(report.read_text())["domains"]
    return cost, sum(image["read_bytes"] for image in domain["images"])


def _overwrite(lab: Lab, made: Subject, offsets: Sequence[int]) -> None:
    with (
        rados.Rados(conffile=str(lab.ceph_conf)) as cluster,
        cluster.open_ioctx(POOL) as pool,
        rbd.Image(pool, made.name) as image,
    ):
        for offset in offsets:
            image.write(random.randbytes(DATA), offset)
