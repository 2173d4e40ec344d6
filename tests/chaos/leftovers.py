"""What is left of ours once the locks have expired and a further run has been; and what of others is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.agreement import report_of
from tests.chaos.guests import GUESTS
from tests.chaos.nodes import Node
from tests.chaos.of_domains import snapshots
from tests.chaos.processes import guests, ours
from tests.chaos.violation import Violation
from tests.chaos.world import World
from tests.lab.cluster import POOLS

PREFIX = "virt-rbd-backup."
BASE = "virt-rbd-backup.kept."  # of restic_incremental, for its next run
# What stays in RUNTIME_DIR and STATE_DIR; all else there is for a while.
STAYS_IN_RUNTIME_DIR = r"run\.lock|[a-z]+\.[0-9]+\.lock"
STAYS_IN_STATE_DIR = (
    r"proofs\.json|known-points\.json|restic-key-[0-9a-f]{16}|reports/[0-9]{8}T[0-9]{6}Z-[a-z]{4}\.json\.gz"
    r"|manifests/[0-9a-f-]{36}\.[0-9a-f]{8,64}"
)
NOTHING_LEFT = "nothing of ours is left"


def violations(world: World) -> Iterator[Violation]:
    """Look for all of it."""
    for text in (*_in_cluster(world), *_on_nodes(world), *_in_repositories(world)):
        yield Violation(NOTHING_LEFT, text)
    for image, name in world.foreign_snapshots:
        if name not in snapshots(world.lab, image):
            yield Violation("snapshots of others stay", f"{image}@{name} is gone")


def _in_cluster(world: World) -> Iterator[str]:
    known = {image for guest in GUESTS for image in guest.images.values()}
    for pool in POOLS:
        for name in world.lab.rbd("ls", "--pool", pool).decode().split():
            image = f"{pool}/{name}"
            if image not in known:
                yield f"image {image}"
            names = [one for one in snapshots(world.lab, image) if one.startswith(PREFIX)]
            yield from (f"snapshot {image}@{one}" for one in names if not one.startswith(BASE))
            if len(bases := [one for one in names if one.startswith(BASE)]) > 1:
                yield f"{len(bases)} base snapshots of {image}"
        yield from (f"object {pool}/{name}" for name in _objects(world, pool) if name.startswith(PREFIX))


def lock_objects(world: World, pool: str) -> list[str]:
    """Give the names of the domains' lock objects in a pool."""
    return [name for name in _objects(world, pool) if name.startswith(f"{PREFIX}lock.")]


def _objects(world: World, pool: str) -> list[str]:
    return world.rados("--pool", pool, "ls").decode().split()


def _on_nodes(world: World) -> Iterator[str]:
    mounts = Path("/proc/self/mountinfo").read_text()
    for node in world.nodes.values():
        there = [*ours(node.directory), *guests(node.directory)]
        yield from (f"process {one} of {node.name}" for one in there)
        files = left_files(node, _newest_run(world, node))
        yield from (f"{node.name}: {path.relative_to(node.directory)}" for path in files)
        if re.search(rf" {re.escape(str(node.directory))}", mounts):
            yield f"a mount of {node.name}"


def _newest_run(world: World, node: Node) -> str:
    """Give the id of the node's newest run that has reported, "" for none."""
    runs = [report_of(one).get("run", "") for one in world.backups if one.node is node]
    return str(next(filter(None, reversed(runs)), ""))


def left_files(node: Node, run: str) -> Iterator[Path]:
    """Give records of all kinds, drafts of files that are written as a whole, and temporary files.

    `run`: the node's newest one, whose failed attempts only the next one forgets.
    """
    for directory, stays in (
        (node.runtime_dir, STAYS_IN_RUNTIME_DIR),
        (node.state_dir, STAYS_IN_STATE_DIR + rf"|failed-points/{re.escape(run or '-')}\..+"),
    ):
        files = [path for path in directory.rglob("*") if not path.is_dir()]
        yield from (path for path in files if not re.fullmatch(stays, str(path.relative_to(directory))))
    yield from (path for place in (node.temporary, node.drill_dir) for path in place.iterdir())


def _in_repositories(world: World) -> Iterator[str]:
    for holder in world.holders:
        yield from holder.left()
        yield from (f"{holder.place.name}: {point}" for point in holder.points() if not point.manifest)
