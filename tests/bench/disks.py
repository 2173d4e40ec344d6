"""How long a domain with several disks takes, of which each is read at a limited rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab import Lab, RbdDisk
from tests.lab.sample import make_image

from .bench import Bench, say
from .measure import Cost
from .subjects import GIB, POOL, spread
from .table import HEAD, cells, markdown, median

RATE = 32 << 20  # bytes per second of each image
DATA = GIB // 2  # bytes of each image
COUNT = 4  # disks


def disks(bench: Bench) -> str:
    """A domain with one disk, and one with four, each 1 GiB with 512 MiB of data read at 32 MiB/s."""
    costs: dict[tuple[int, int], list[Cost]] = {(1, COUNT): [], (COUNT, COUNT): [], (COUNT, 1): []}
    contestant = bench.contestant("disks")
    with _domain(bench.lab, 1) as one, _domain(bench.lab, COUNT) as several:
        names = {1: one, COUNT: several}
        for number in range(bench.rounds):
            for (count, streams), found in costs.items():
                contestant.empty()
                constants = {"RESTIC_BINARY": str(contestant.restic.path), "MAX_READ_RATE": RATE}
                command = contestant.node.command("backup", names[count], STREAMS=streams, **constants)
                found.append(contestant.run(command))
                say(f"disks, round {number + 1}: {count} with {streams}: {found[-1].seconds:.1f} s")
    contestant.remove()
    rows = [(str(count), str(streams), *cells(median(found))) for (count, streams), found in costs.items()]
    return markdown(("disks", "STREAMS", *HEAD), rows)


@contextmanager
def _domain(lab: Lab, count: int) -> Iterator[str]:
    """Make a domain with so many disks, which is shut off, for the block; return its name."""
    name = f"bench-disks-{count}"
    images = [f"{POOL}/{name}-{number}" for number in range(count)]
    for image in images:
        make_image(lab, image, GIB, spread(GIB, DATA))
    try:
        lab.define_domain(name, [RbdDisk(f"vd{'abcd'[number]}", one) for number, one in enumerate(images)])
        yield name
    finally:
        if name in lab.virsh("list", "--all", "--name").split():
            lab.undefine_domain(name)
        for image in images:
            lab.rbd("snap", "purge", "--no-progress", image)
            lab.delete_image(image)
