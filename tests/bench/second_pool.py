"""A second pool as the destination: OUTPUT = "rbd" beside rbd's own export and import."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Callable

from .bench import FIRST, Bench, say
from .contestants import OURS, Contestant
from .measure import Cost
from .subjects import GIB, POOL, SNAPSHOT, Subject, spread, subject
from .table import HEAD, cells, markdown, median

THERE = "ssd"  # the pool
PLAIN = f"{THERE}/bench-plain"
NEXT = "next"
LATENCY = 0.02  # seconds
NOTHING, CLONE, COPY = "nothing changed", "restored as a clone", "restored as a copy"
EXPORT, DIFF = "rbd export to rbd import", "rbd export-diff to rbd import-diff"
BACK = f"{POOL}/bench-came-back"
# The targets: our time through that of the other one, at the most.
TARGETS = {(FIRST, OURS): (EXPORT, 0.8), (NOTHING, OURS): (DIFF, 0.5)}


def second_pool(bench: Bench) -> str:
    """16 GiB, of which 2.5 GiB are data: into a second pool, unchanged, and back."""
    costs: dict[tuple[str, str], list[Cost]] = {}
    with subject(bench.lab, bench.directory, "second", 16 * GIB, spread(16 * GIB, int(2.5 * GIB))) as made:
        contestant = bench.contestant("second pool")
        contestant.node.constants.update(OUTPUT="rbd", RBD_OUTPUT_POOL=THERE)
        for number in range(bench.rounds):
            for (kind, name), command in WAYS.items():
                cost = contestant.run(command(contestant, made))
                costs.setdefault((kind, name), []).append(cost)
                say(f"second pool, round {number + 1}: {name}, {kind}: {cost.seconds:.1f} s")
                _tidy(bench, contestant, made, kind)
            _empty(bench)
        contestant.run(contestant.node.command("cleanup", "--all"))
        contestant.remove()
    medians = {key: median(found) for key, found in costs.items()}
    rows = [(*key, _ratio(key, medians), *cells(cost)) for key, cost in medians.items()]
    return markdown(("what", "way", "ratio", *HEAD), rows)


def far_away(bench: Bench) -> str:
    """4 GiB, of which 1 GiB is data, into a second pool, each reply of whose OSD comes about 20 ms later."""
    rows = []
    conf = bench.directory / "far" / "ceph.conf"
    conf.parent.mkdir()
    # Evenly spread between nothing and the most (src/msg/async/AsyncConnection.cc).
    delays = {"type": "osd", "max": 2 * LATENCY, "probability": 1}
    lines = [f"ms inject delay {name} = {value}\n" for name, value in delays.items()]
    conf.write_text(bench.lab.ceph_conf.read_text() + "\n[client]\n" + "".join(lines))
    with subject(bench.lab, bench.directory, "far", 4 * GIB, spread(4 * GIB, GIB)) as made:
        contestant = bench.contestant("far away")
        for label, there in (("as it is", bench.lab.ceph_conf), ("with 20 ms more", conf)):
            for kind in (FIRST, NOTHING):
                constants = {"OUTPUT": "rbd", "RBD_OUTPUT_POOL": THERE, "RBD_OUTPUT_CONF": str(there)}
                cost = contestant.run(contestant.node.command("backup", made.name, **constants))
                say(f"far away, {label}: {kind}: {cost.seconds:.1f} s")
                rows.append((label, kind, *cells(cost)))
            contestant.run(contestant.node.command("cleanup", "--all"))
            _empty(bench)
        contestant.remove()
    return markdown(("latency", "backup", *HEAD), rows)


def _ratio(key: tuple[str, str], medians: Mapping[tuple[str, str], Cost]) -> str:
    if key not in TARGETS:
        return ""
    other, target = TARGETS[key]
    ratio = medians[key].seconds / medians[key[0], other].seconds
    return f"{ratio:.2f} (target {target})"


def _tidy(bench: Bench, contestant: Contestant, made: Subject, kind: str) -> None:
    """Remove what the next command must not find; the first image that came back is compared."""
    if kind in (CLONE, COPY):
        line = 'cmp <(rbd export --no-progress "$1" -) <(rbd export --no-progress "$2" -)'
        contestant.run(["bash", "-c", line, "bash", made.spec, BACK])
        bench.lab.delete_image(BACK)


def _empty(bench: Bench) -> None:
    """Begin again with an empty pool; images of the sample domains in it stay."""
    names = bench.lab.rbd("ls", THERE).decode().split()
    for name in names:
        if name.startswith("virt-rbd-backup.") or name == PLAIN.partition("/")[2]:
            line = (
                'rbd snap ls --format json "$1" | grep -o \'"name":"[^"]*"\' | cut -d\'"\' -f4 |'
                ' while read -r name; do rbd snap unprotect "$1@$name" 2>/dev/null || true; done;'
                ' rbd snap purge --no-progress "$1" && rbd rm --no-progress "$1"'
            )
            environment = {"CEPH_CONF": str(bench.lab.ceph_conf), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
            subprocess.run(["bash", "-c", line, "bash", f"{THERE}/{name}"], env=environment, check=True)


def _export(_contestant: Contestant, made: Subject) -> Sequence[str]:
    line = (
        'rbd export --no-progress "$1@$2" - | rbd import --no-progress - "$3" &&'
        ' rbd snap create --no-progress "$3@$2"'
    )
    return _shell(line, made.spec, SNAPSHOT, PLAIN)


def _diff(_contestant: Contestant, made: Subject) -> Sequence[str]:
    line = (
        'rbd snap create --no-progress "$1@$4" && rbd export-diff --no-progress --from-snap "$2" "$1@$4" - |'
        ' rbd import-diff --no-progress - "$3" && rbd snap rm --no-progress "$1@$4"'
    )
    return _shell(line, made.spec, SNAPSHOT, PLAIN, NEXT)


def _shell(line: str, *words: str) -> Sequence[str]:
    return ["bash", "-o", "pipefail", "-c", line, "bash", *words]


def _backup(contestant: Contestant, made: Subject) -> Sequence[str]:
    return contestant.node.command("backup", made.name)


def _clone(contestant: Contestant, made: Subject) -> Sequence[str]:
    return contestant.node.command("restore", made.name, "--clone", "--to-image", BACK)


def _copy(contestant: Contestant, made: Subject) -> Sequence[str]:
    return contestant.node.command("restore", made.name, "--to-image", BACK)


WAYS: Mapping[tuple[str, str], Callable[[Contestant, Subject], Sequence[str]]] = {
    (FIRST, EXPORT): _export,
    (FIRST, OURS): _backup,
    (NOTHING, DIFF): _diff,
    (NOTHING, OURS): _backup,
    (CLONE, OURS): _clone,
    (COPY, OURS): _copy,
}
