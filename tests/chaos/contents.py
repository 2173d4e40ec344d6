"""Whether restore points come back: bit for bit where the content is known, unbroken where a guest wrote."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Optional

from tests.chaos import records
from tests.chaos.agreement import report_of
from tests.chaos.guests import BY_NAME, Guest
from tests.chaos.nodes import Running
from tests.chaos.repository import Holder, Point, Repository, sha256
from tests.chaos.violation import Violation
from tests.chaos.world import World
from tests.lab import LabError

COMES_BACK = "every restore point comes back"
ANOTHER_RUN = 11  # the exit code of one that never began, as another was active
SETTLES = 1.5  # seconds until what a guest has printed is seen, at the latest


def violations(world: World, holder: Holder) -> Iterator[Violation]:
    """Read back what is new since the last time; what is older has to be there still, or pruned."""
    points = [point for point in holder.points() if point.manifest]
    held = world.held_in.setdefault(holder.place, {})
    for point in points:
        if point.manifest not in world.checked:
            world.checked.add(point.manifest)
            for text in _of_point(world, holder, point):
                yield Violation(COMES_BACK, f"{point}: {text}")
            held[point.manifest] = point
    for manifest in {*held}.difference(point.manifest for point in points):
        gone = held.pop(manifest)
        if not _pruned(holder, gone, points):
            yield Violation("nobody removes restore points", f"{gone} is gone")


def _pruned(holder: Holder, gone: Point, points: Sequence[Point]) -> bool:
    """Tell whether the program was asked to remove it: as many newer ones as are kept are there.

    Of two runs side by side, the one that began first may have saved the domain last.
    """
    others = [point for point in points if point.uuid == gone.uuid]
    newer = [point for point in others if (point.taken, point.run) > (gone.taken, gone.run)]
    return 0 < holder.keeps <= len(newer)


def _of_point(world: World, holder: Holder, point: Point) -> Iterator[str]:
    try:
        holder.require_manifest(point)
    except LabError as error:
        yield f"its manifest can't be read: {error}"
        return
    guest = BY_NAME[point.domain]
    images = {target: guest.images[target] for target in guest.images if target in point.images}
    missing = {*guest.images} - {*images}
    if missing and not world.happened("disk detached", point.domain):
        yield f"it lacks {', '.join(sorted(missing))}"
    with ExitStack() as stack:
        files = {}
        for target in images:
            try:
                files[target] = _kept(stack, holder, point, target)
            except LabError as error:
                yield f"{target} can't be read: {error}"
        for target, file in files.items():
            yield from _of_image(world, point, target, file)
        if guest.running and len(files) == len(images):
            yield from _of_guest(world, guest, point, files)


def _kept(stack: ExitStack, holder: Holder, point: Point, target: str) -> Path:
    with holder.image(point, target) as path:
        kept = path.parent.with_name(f"kept-{target}")
        path.rename(kept)
    stack.callback(kept.unlink)
    return kept


def _of_image(world: World, point: Point, target: str, file: Path) -> Iterator[str]:
    _, image, size, _ = point.images[target]
    if file.stat().st_size != size:
        yield f"{target} has {file.stat().st_size} bytes, {size} were saved"
    if image in world.content and sha256(file) != world.content[image]:
        yield f"{target} ({image}) differs from what it was"


def _of_guest(world: World, guest: Guest, point: Point, files: dict[str, Path]) -> Iterator[str]:
    span = _moment(point, world.backups)
    if not span or len(files) != len(guest.images):
        return
    least, most = world.pulse.tick_at(guest.name, span[0]), world.pulse.tick_at(guest.name, span[1] + SETTLES)
    yield from records.problems(files, point.consistency, least, most)


def _moment(point: Point, backups: Sequence[Running]) -> Optional[tuple[float, float]]:
    """Tell between which moments of time.monotonic() its snapshots were made."""
    clock = time.time() - time.monotonic()
    for command in reversed(backups):
        report = report_of(command)
        if report.get("run") == point.run:
            for domain in report["domains"]:
                if domain["uuid"] == point.uuid and domain["frozen_at"] and domain["images"]:
                    began = datetime.fromisoformat(domain["frozen_at"]).timestamp() - clock
                    return began, began + domain["frozen_seconds"]
            return command.began, command.ended
    for command in reversed(backups):  # of a run that was killed before it could report
        began = command.code != ANOTHER_RUN
        if began and not report_of(command) and f"{command.order.node}" == point.node:
            return command.began, command.ended
    return None


def forget_old(world: World, repository: Repository) -> None:
    """Make room as an admin would, once most of it is used; what is forgotten here is not missed later.

    The newest restore point of each domain stays: the next round may begin with a drill.
    """
    usage = shutil.disk_usage(world.store)
    if usage.used < usage.total / 2:
        return
    repository.restic("unlock", "--remove-all")
    newest = {point.uuid: point for point in repository.points() if point.manifest}.values()
    manifests = {point.manifest for point in newest}
    kept = manifests.union(*({one for one, *_ in point.images.values()} for point in newest))
    ids = [one["id"] for one in repository.snapshots() if one["id"] not in kept]
    if ids:
        repository.restic("forget", "--prune", "--quiet", *ids)
    held = world.held_in.get(repository.place, {})
    world.held_in[repository.place] = {one: point for one, point in held.items() if one in manifests}
