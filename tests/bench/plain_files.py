"""A directory as the destination: OUTPUT = "directory" beside qemu-img convert into the same place."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from .bench import FIRST, Bench, say
from .changing import NOTHING, drawn, overwrite
from .contestants import OURS
from .measure import Cost
from .subjects import GIB, SNAPSHOT, Subject, spread, subject
from .table import HEAD, cells, markdown, median

CONVERT = "qemu-img convert -n -m 8"
SCATTERED, CLUSTERED = "1 % changed, scattered", "1 % changed, clustered"
# The targets: our time through that of the other one, at the most.
TARGETS = {
    (FIRST, OURS): ((FIRST, CONVERT), 1.1),
    (CLUSTERED, OURS): ((FIRST, OURS), 0.125),
    (SCATTERED, OURS): ((FIRST, OURS), 0.125),
}


def plain_files(bench: Bench) -> str:
    """16 GiB, of which 2.5 GiB are data: into qcow2 files, unchanged, and with 1 % changed."""
    costs: dict[tuple[str, str], list[Cost]] = {}
    data = spread(16 * GIB, int(2.5 * GIB))
    place = bench.directory / "files"

    def note(kind: str, name: str, cost: Cost) -> None:
        costs.setdefault((kind, name), []).append(cost)
        say(f"plain files: {name}, {kind}: {cost.seconds:.1f} s")

    with subject(bench.lab, bench.directory, "files", 16 * GIB, data) as made:
        contestant = bench.contestant("plain files")
        contestant.node.constants.update(OUTPUT="directory", DIRECTORY_OUTPUT=str(place))
        backup = contestant.node.command("backup", made.name)
        for _ in range(bench.rounds):
            place.mkdir()
            note(FIRST, CONVERT, contestant.run(_convert(bench, made, place / "converted.qcow2")))
            note(FIRST, OURS, contestant.run(backup))
            note(NOTHING, OURS, contestant.run(backup))
            for kind, offsets in drawn(list(data), 0.01).items():
                overwrite(bench.lab, made, offsets)
                note(SCATTERED if kind == "scattered" else CLUSTERED, OURS, contestant.run(backup))
            contestant.run(contestant.node.command("cleanup", "--all"))
            shutil.rmtree(place)
        contestant.remove()
    medians = {key: median(found) for key, found in costs.items()}
    rows = []
    for key, cost in medians.items():
        other, target = TARGETS.get(key, (key, 0.0))
        ratio = f"{cost.seconds / medians[other].seconds:.2f} (target {target})" if target else ""
        rows.append((*key, ratio, *cells(cost)))
    return markdown(("what", "way", "ratio", *HEAD), rows)


def _convert(bench: Bench, made: Subject, path: Path) -> Sequence[str]:
    """Convert the snapshot; its last bytes have to be on the disk, as ours are."""
    line = 'qemu-img create -q -f qcow2 "$1" "$2" && qemu-img convert -n -m 8 -O qcow2 "$3" "$1" && sync "$1"'
    source = f"rbd:{made.spec}@{SNAPSHOT}:conf={bench.lab.ceph_conf}"
    return ["bash", "-c", line, "bash", str(path), str(made.size), source]
