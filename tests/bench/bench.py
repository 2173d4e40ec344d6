"""What all parts of the benchmark share: the lab, the repositories, and contestants that take turns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Lab
from tests.quick_repository import PASSWORD

from .contestants import CONTESTANTS, LIMIT, SHARED_LIMIT, Contestant
from .measure import Cost
from .subjects import Subject
from .table import median

FIRST, REPEATED = "first", "repeated"
Costs = Mapping[tuple[str, str], Cost]  # medians, by kind and contestant


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark in a directory of its own. `chart` is where the main part's goes."""

    lab: Lab
    directory: Path
    restic: str
    rounds: int
    chart: Path

    def contestant(self, name: str, conf: Path | None = None) -> Contestant:
        """Give one with a directory and a repository of its own."""
        directory = self.directory / name.replace(" ", "-")
        conf = conf or self.lab.ceph_conf
        return Contestant(self.lab, directory, self.restic, self._empty_repository(), conf)

    def race(
        self,
        label: str,
        subject: Subject,
        names: Sequence[str],
        conf: Path | None = None,
        rounds: int = 0,
    ) -> Costs:
        """Let the contestants take turns: into an empty repository, then once more into the same.

        Ends the benchmark if they have not saved the same bytes.
        """
        contestants = {name: self.contestant(f"{label} {name}", conf) for name in names}
        costs: dict[tuple[str, str], list[Cost]] = {}
        for number in range(rounds or self.rounds):
            for name, contestant in contestants.items():
                contestant.empty()
                for kind in (FIRST, REPEATED):
                    if name in (LIMIT, SHARED_LIMIT):
                        _into_the_page_cache(subject.file)
                    cost = contestant.run(CONTESTANTS[name](contestant, subject))
                    costs.setdefault((kind, name), []).append(cost)
                    say(f"{label}, round {number + 1}: {name}, {kind}: {cost.seconds:.1f} s")
        saved = {name: tuple(contestant.saved()) for name, contestant in contestants.items()}
        if len(set(saved.values())) != 1:
            raise SystemExit(f"{label}: not the same bytes: {[(n, len(s)) for n, s in saved.items()]}")
        for contestant in contestants.values():
            contestant.remove()
        return {key: median(found) for key, found in sorted(costs.items())}

    def _empty_repository(self) -> Path:
        """Give a real one: its key costs each call of restic half a second, as everybody's does."""
        path = self.directory / "empty"
        if not path.exists():
            ours = {name: value for name, value in os.environ.items() if not name.startswith("RESTIC_")}
            environment = {**ours, "RESTIC_PASSWORD": PASSWORD}
            command = [self.restic, "init", "--quiet", "--repo", str(path)]
            subprocess.run(command, env=environment, check=True)
        return path


def say(text: str) -> None:
    """Tell how far the benchmark is."""
    print(text, file=sys.stderr, flush=True)


def _into_the_page_cache(file: Path) -> None:
    """Read it once, so that the kernel makes no room for its pages while restic is timed."""
    with file.open("rb") as opened:
        while opened.read(1 << 20):
            continue
