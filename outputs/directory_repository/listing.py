"""Lists the restore points of the directory, and reads their manifests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Callable, Optional

from backup.errors import BackupError
from backup.restore_point import manifest
from backup.stored import StoredPoint
from backup.system.spool import CHUNK, Spool

from ..own_points.entry import Entry, entry_of_manifest, guessed_entry, unpacked
from ..own_points.order import in_order
from ..own_points.run_names import point_id
from .domain_directory import DomainDirectory
from .errors import answered, named_errors
from .names import ENTRY, MANIFEST, is_uuid, restore_id, split_id, target_of

AT_A_TIME = 8  # domains that are listed at the same time


def restore_points(root: Path, check_stop: Callable[[], None]) -> Sequence[StoredPoint]:
    """List all restore points, oldest first, those of the future before them. Raises BackupError."""

    def names() -> Sequence[str]:
        with named_errors("read", root):
            return sorted(path.name for path in root.iterdir() if is_uuid(path.name))

    domains = [DomainDirectory(root, name) for name in answered(root, names, check_stop)]
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="points") as threads:
        return in_order(chain.from_iterable(threads.map(partial(points_of, check_stop=check_stop), domains)))


def points_of(domain: DomainDirectory, check_stop: Callable[[], None]) -> Sequence[StoredPoint]:
    """List the restore points of a domain, in the same order. Raises BackupError."""
    return in_order(answered(domain.root, lambda: list(_points(domain)), check_stop))


def read_manifest(domain: DomainDirectory, point: str) -> Spool:
    """Return the manifest of a complete restore point. Raises BackupError."""
    packed = Spool()
    path = domain.final(point) / MANIFEST
    with named_errors("read", path), path.open("rb") as file:
        while data := file.read(CHUNK):
            packed.append(data)
    return packed


def _points(domain: DomainDirectory) -> Iterator[StoredPoint]:
    """Yield those that count, those under way, and those whose removal was interrupted.

    What is left of one only because others build on it has no entry any more.
    """
    for name in domain.partials():
        if listed := _listed(domain, name, domain.partial(name), ""):
            yield listed
    for name in domain.points():
        counts = domain.counts(name)
        path = domain.final(name)
        if (counts or _text(path)) and (listed := _listed(domain, name, path, MANIFEST if counts else "")):
            yield replace(listed, removed=not counts)  # it got its final name when it was complete


def _listed(domain: DomainDirectory, name: str, path: Path, manifest_id: str) -> Optional[StoredPoint]:
    point = point_id(domain.uuid, name)
    files = {image.name for image in domain.images(path)}
    entry = unpacked(_text(path)) or (_from_manifest(domain, name) if manifest_id else None)
    if not entry:
        entry = guessed_entry(domain.uuid, name, {file: target_of(file) or "" for file in sorted(files)})
    there = {file: restore_id(domain.uuid, name, file) for file in files}
    return entry.listed(point, lambda file: there.get(file, ""), manifest_id) if point else None


def _text(directory: Path) -> str:
    """Return the entry of a restore point as it is stored, "" if there is none."""
    with named_errors("read", path := directory / ENTRY):
        try:
            return path.read_text(errors="replace")
        except FileNotFoundError:
            return ""


def _from_manifest(domain: DomainDirectory, name: str) -> Optional[Entry]:
    """Return the entry of a restore point by its manifest, None if that is damaged."""
    try:
        saved = manifest.unpack(read_manifest(domain, name))
    except BackupError as error:
        if error.transient:
            raise
        return None
    return entry_of_manifest(saved, lambda identifier: split_id(identifier)[2])
