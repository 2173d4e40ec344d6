"""The benchmark: python3 -m tests.bench [--restic PROGRAM], as root. Prints a table; takes its time."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab import Lab, RbdDisk, running_lab
from tests.lab.sample import make_image
from tests.quick_repository import PASSWORD

from .contestants import CONTESTANTS, Contestant, Subject
from .measure import Cost
from .table import markdown, rows

GIB = 1 << 30
OBJECT = 4 << 20
KINDS = ("first", "repeated")


def main() -> int:
    options = _parse()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="virt-rbd-backup-bench")))
        lab = _lab(directory, stack)
        subject = stack.enter_context(_subject(lab, directory, options.size, options.data))
        empty = _empty_repository(directory, options.restic)
        contestants = {name: Contestant(lab, directory / name, options.restic, empty) for name in CONTESTANTS}
        costs = _race(contestants, subject, options.rounds)
        _require_the_same_bytes(contestants)
    print(_machine(options.restic))
    image = f"An image of {options.size:g} GiB, {options.data:g} GiB of it data"
    print(f"{image}; medians of {options.rounds} rounds.\n")
    print(markdown(rows(costs)))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench", description=__doc__)
    parser.add_argument("--restic", default="restic", help="the program (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=float, default=16, help="of the image, in GiB (default: %(default)s)")
    parser.add_argument("--data", type=float, default=2.5, help="of it, in GiB (default: %(default)s)")
    return parser.parse_args()


def _lab(directory: Path, stack: ExitStack) -> Lab:
    """Bring up a lab; or use the one in LAB_DIRECTORY, which stays up."""
    if "LAB_DIRECTORY" in os.environ:
        return Lab(Path(os.environ["LAB_DIRECTORY"]))
    return stack.enter_context(running_lab(directory / "lab"))


def _empty_repository(directory: Path, restic: str) -> Path:
    """Make a real one: its key costs each call of restic half a second, as everybody's does."""
    path = directory / "empty"
    environment = {**os.environ, "RESTIC_PASSWORD": PASSWORD}
    subprocess.run([restic, "init", "--quiet", "--repo", str(path)], env=environment, check=True)
    return path


@contextmanager
def _subject(lab: Lab, directory: Path, size: float, data: float) -> Iterator[Subject]:
    """Make an image with random data in objects spread over it, its domain, and its bytes in a file."""
    spec, count = "vms/bench", int(data * GIB) // OBJECT
    step = int(size * GIB) // count // OBJECT * OBJECT or OBJECT
    make_image(lab, spec, int(size * GIB), {number * step: OBJECT for number in range(count)})
    lab.rbd("snap", "create", "--no-progress", f"{spec}@bench")
    lab.define_domain("bench", [RbdDisk("vda", spec)])
    file = directory / "vda.img"
    try:
        lab.rbd("export", "--no-progress", f"{spec}@bench", str(file))
        yield Subject("vms", "bench", "bench", "bench", file)
    finally:
        lab.undefine_domain("bench")
        lab.rbd("snap", "rm", "--no-progress", f"{spec}@bench")
        lab.delete_image(spec)


def _race(
    contestants: Mapping[str, Contestant], subject: Subject, rounds: int
) -> Mapping[tuple[str, str], Sequence[Cost]]:
    """Let all take turns: into an empty repository, then once more into the same."""
    costs: dict[tuple[str, str], list[Cost]] = {(name, kind): [] for kind in KINDS for name in contestants}
    for number in range(rounds):
        for name, contestant in contestants.items():
            contestant.empty()
            for kind in KINDS:
                cost = contestant.run(CONTESTANTS[name](contestant, subject))
                costs[name, kind].append(cost)
                text = f"round {number + 1}: {name}, {kind}: {cost.seconds:.1f} s"
                print(text, file=sys.stderr, flush=True)
    return costs


def _require_the_same_bytes(contestants: Mapping[str, Contestant]) -> None:
    saved = {name: tuple(contestant.saved()) for name, contestant in contestants.items()}
    if len(set(saved.values())) != 1:
        raise SystemExit(f"they have not saved the same bytes: {[(n, len(s)) for n, s in saved.items()]}")


def _machine(restic: str) -> str:
    def version(*command: str) -> str:
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        return " ".join(printed.split()[:3])

    versions = f"{version(restic, 'version')}, {version('ceph', '--version')}"
    return f"{os.cpu_count()} cores ({platform.machine()}), {versions}."


if __name__ == "__main__":
    sys.exit(main())
