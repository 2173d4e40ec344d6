"""How fast an image comes back: restored and verified, beside restic alone and `rbd import`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Callable

from .bench import Bench, say
from .contestants import OURS, Contestant
from .measure import Cost
from .subjects import GIB, POOL, Subject, spread, subject
from .table import HEAD, cells, markdown, median

BACK = "bench-came-back"  # the image's name
DUMP = '"$1" dump --quiet --path /vda.img latest vda.img'
NOWHERE = "restic dump to /dev/null"
IMPORT = "restic dump to rbd import"


def comeback(bench: Bench) -> str:
    """16 GiB, of which 2.5 GiB are data: restored as an image of another name, and verified."""
    costs: dict[str, list[Cost]] = {}
    with subject(bench.lab, bench.directory, "back", 16 * GIB, spread(16 * GIB, int(2.5 * GIB))) as made:
        contestant = bench.contestant("back")
        contestant.empty()
        contestant.run(contestant.node.command("backup", made.name))
        for number in range(bench.rounds):
            for name, command in WAYS.items():
                cost = contestant.run(command(contestant, made))
                costs.setdefault(name, []).append(cost)
                say(f"back, round {number + 1}: {name}: {cost.seconds:.1f} s")
                if BACK in bench.lab.rbd("ls", POOL).decode().split():
                    if not number:  # reading both once more takes longer than what is measured
                        _require_equal(contestant, made)
                    bench.lab.delete_image(f"{POOL}/{BACK}")
        contestant.remove()
    medians = {name: median(found) for name, found in costs.items()}
    rows = [
        (name, *(f"{cost.seconds / medians[other].seconds:.2f}" for other in (NOWHERE, IMPORT)), *cells(cost))
        for name, cost in medians.items()
    ]
    return markdown(("way", f"to {NOWHERE}", f"to {IMPORT}", *HEAD), rows)


def _require_equal(contestant: Contestant, made: Subject) -> None:
    """End the benchmark if what came back is not what was saved."""
    line = 'cmp <(rbd export --no-progress "$1" -) <(rbd export --no-progress "$2" -)'
    contestant.run(["bash", "-c", line, "bash", made.spec, f"{POOL}/{BACK}"])


def _dump(contestant: Contestant, _made: Subject) -> Sequence[str]:
    return ["bash", "-c", f"{DUMP} >/dev/null", "bash", str(contestant.restic.path)]


def _dump_into_a_pipe(contestant: Contestant, _made: Subject) -> Sequence[str]:
    return ["bash", "-o", "pipefail", "-c", f"{DUMP} | cat >/dev/null", "bash", str(contestant.restic.path)]


def _import(contestant: Contestant, _made: Subject) -> Sequence[str]:
    line = f"{DUMP} | rbd import --no-progress - {POOL}/{BACK}"
    return ["bash", "-o", "pipefail", "-c", line, "bash", str(contestant.restic.path)]


def _restore(contestant: Contestant, made: Subject) -> Sequence[str]:
    place = ("--to-image", f"{POOL}/{BACK}")
    return contestant.node.command("restore", made.name, *place, RESTIC_BINARY=str(contestant.restic.path))


def _verify(contestant: Contestant, made: Subject) -> Sequence[str]:
    return contestant.node.command("verify", made.name, RESTIC_BINARY=str(contestant.restic.path))


WAYS: Mapping[str, Callable[[Contestant, Subject], Sequence[str]]] = {
    NOWHERE: _dump,
    "restic dump to cat": _dump_into_a_pipe,
    IMPORT: _import,
    f"{OURS} restore": _restore,
    f"{OURS} verify": _verify,
}
