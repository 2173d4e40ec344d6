"""What is kept of a round that failed: its plan, its commands' words and reports, the state of all parts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Callable

from tests.chaos.guests import BY_NAME
from tests.chaos.processes import ours
from tests.chaos.repository import Repository
from tests.chaos.violation import Violation
from tests.chaos.world import SAVED_POOL, World
from tests.lab import LabError
from tests.lab.programs import run_program


def kept(world: World, directory: Path, began: float, violations: Sequence[Violation], into: Path) -> Path:
    """Copy it, and give the directory where it is."""
    place = into / directory.name
    shutil.copytree(directory, place, dirs_exist_ok=True)
    (place / "violations").write_text("".join(f"{one}\n" for one in violations))
    (place / "faults").write_text(f"{faults(world, began)}\n")
    (place / "state").write_text("\n\n".join(_state(world)))
    return place


def faults(world: World, began: float) -> str:
    """Give the faults that happened with their moments, in seconds since the round began."""
    spans = sorted(world.spans, key=lambda span: span.began)
    return "\n".join(f"{one.began - began:6.2f} to {one.ended - began:6.2f} s: {one}" for one in spans)


def _state(world: World) -> Sequence[str]:
    return [*_state_of_nodes(world), *_state_of_parts(world)]


def _state_of_nodes(world: World) -> Iterator[str]:
    for node in world.nodes.values():
        files = sorted(str(path) for path in node.directory.rglob("*") if "cache" not in path.parts)
        yield "\n".join([node.name, *files, *map(str, ours(node.directory))])


def _state_of_parts(world: World) -> Iterator[str]:
    """Yield what the parts of the lab say, up to the first that has no answer: each might take minutes."""
    lab = world.lab
    images = [image for name in world.definitions for image in BY_NAME[name].images.values()]
    questions: dict[str, Callable[[], bytes]] = {
        "domains": lambda: lab.virsh("list", "--all").encode(),
        **{
            place.name: partial(Repository(place, world.directory).restic, "snapshots", "--no-lock")
            for place in world.places
        },
        str(world.saved_directory): partial(run_program, "find", world.saved_directory, "-ls"),
        str(SAVED_POOL): partial(lab.rbd, "ls", "--long", str(SAVED_POOL)),
        **{image: partial(lab.rbd, "snap", "ls", image) for image in images},
        **{pool: partial(world.rados, "--pool", pool, "ls") for pool in ("vms", "ssd")},
    }
    for title, ask in questions.items():
        try:
            yield f"{title}:\n{ask().decode()}"
        except LabError as error:
            yield f"{title}: {error}"
            return
