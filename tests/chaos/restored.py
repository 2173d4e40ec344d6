"""What a restore has brought back, beside the domain that was saved."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from tests.chaos import records
from tests.chaos.guests import BY_NAME
from tests.chaos.plan import INSTANT, Order
from tests.chaos.violation import Violation
from tests.chaos.world import World, wait_for
from tests.lab import LabError

EVER = 1 << 60  # a tick that no guest reaches
WRITES_WITHIN = 60  # seconds
COMES_BACK = "a restore brings back what was saved"


def violations(world: World, order: Order) -> Iterator[Violation]:
    """Hold what a restore that has ended well has made against what is known, and remove it."""
    if INSTANT in order.words:
        yield from (Violation(COMES_BACK, text) for text in _of_guest(world, order))
        return
    domain, suffix = _restored(order)
    for image in BY_NAME[domain].images.values():
        restored = f"{image}{suffix}"
        try:
            content = world.lab.rbd("export", "--no-progress", restored, "-")
        except LabError as error:
            yield Violation(COMES_BACK, f"{restored}: {error.message}")
            continue
        digest = hashlib.sha256(content).hexdigest()
        if world.content.get(image, digest) != digest:
            yield Violation(COMES_BACK, f"{restored} differs from {image}")
        world.lab.rbd("rm", "--no-progress", restored)


def _restored(order: Order) -> tuple[str, str]:
    """Give the domain, and what the names of all that is restored end with."""
    _, domain, suffix, *_ = order.words
    return domain, suffix.partition("=")[2]


def _of_guest(world: World, order: Order) -> Iterator[str]:
    """Find a guest that was restored while it ran on its images alone, writing; find all that it wrote."""
    domain, suffix = _restored(order)
    name = f"{domain}{suffix}"
    images = {target: f"{image}{suffix}" for target, image in BY_NAME[domain].images.items()}
    try:
        yield from _runs(world, name, images)
        world.lab.destroy_domain(name)
        world.lab.undefine_domain(name)
        yield from (f"{name}: {text}" for text in _of_disks(world, images))
    except LabError as error:
        yield f"{name}: {error.message}"
        for word in ("destroy", "undefine"):
            with suppress(LabError):
                world.lab.virsh(word, name)


def _runs(world: World, name: str, images: Mapping[str, str]) -> Iterator[str]:
    lines = [line.split() for line in world.lab.virsh("domblklist", name).splitlines()]
    if (sources := [words[1] for words in lines if words]) != [*images.values()]:
        yield f"{name} is on {sources}"
    before = _written(world, name)
    if not wait_for(lambda: _written(world, name) > before, WRITES_WITHIN, 1):
        yield f"{name} does not write: {world.lab.virsh('domstate', '--reason', name).strip()}"


def _written(world: World, name: str) -> int:
    """Give how often the guest has written to its first disk."""
    found = re.search(r"wr_req (\d+)", world.lab.virsh("domblkstat", name, "vda"))
    return int(found[1]) if found else 0


def _of_disks(world: World, images: Mapping[str, str]) -> Iterator[str]:
    """Find each tick on each disk, from the first to the last: before the backup, and after the restore."""
    files: dict[str, Path] = {}
    for target, image in images.items():
        files[target] = world.directory / f"restored-{target}"
        world.lab.rbd("export", "--no-progress", image, str(files[target]))
        world.lab.delete_image(image)
    yield from records.problems(files, "crash", 1, EVER)
    for file in files.values():
        file.unlink()
