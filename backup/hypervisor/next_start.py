"""Tells a running domain's disks from those that its next start gives it instead, in backups and restores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ..model import Disk

NEXT = ".next"  # ends the target of what the next start puts in the place of what the domain has there now


def with_next_start(now: Sequence[Disk], later: Sequence[Disk]) -> tuple[Disk, ...]:
    """Return the disks that a domain has now, then those that its next start adds or puts in their places.

    A drive that is empty now may get an image at the next start, which then counts.
    """
    filled = {disk.target for disk in later if disk.image}
    now = [disk for disk in now if not (disk.empty and disk.target in filled)]
    targets, places = {disk.target for disk in now}, set(map(_place, now))
    added = [disk for disk in later if disk.target not in targets]
    others = [
        replace(disk, target=disk.target + NEXT)
        for disk in later
        if disk.target in targets and disk.counts and _place(disk) not in places
    ]
    return (*now, *added, *others)


def saved_targets(
    defined: Sequence[Disk], saved: Mapping[str, str], skipped: Collection[str]
) -> Mapping[str, str]:
    """Return which of the saved images belongs to each target of a saved definition, by their targets.

    `defined`: the disks in the definition. `saved`: the names of the saved images by their targets.
    `skipped`: the targets that were not saved. A target may have had another image while the domain ran.
    """
    names = Counter(saved.values())
    by_name = {name: target for target, name in saved.items() if names[name] == 1}
    found = {}
    for disk in defined:
        name, later = str(disk.image or ""), disk.target + NEXT
        if saved.get(disk.target) == name:
            found[disk.target] = disk.target
        elif name in by_name:
            found[disk.target] = by_name[name]
        elif later in saved:
            found[disk.target] = later
        elif disk.target in saved and later not in skipped:
            found[disk.target] = disk.target
    return found


def _place(disk: Disk) -> tuple[object, ...]:
    return (disk.image, disk.address) if disk.image else (disk.source or disk.skipped,)
