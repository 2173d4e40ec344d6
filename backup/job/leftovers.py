"""Our snapshots by their names: base snapshots, and leftovers of interrupted runs, which are removed."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Callable, NamedTuple, Optional

from ..ceph.cluster import Cluster
from ..ceph.errors import ImageGone
from ..errors import BackupError
from ..model import Domain, Image, Level
from ..protocols import Reporter

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OURS = re.compile(rf"virt-rbd-backup\.(?P<base>kept\.)?(?P<uuid>{_UUID})\.(?P<run>[^.]+)")


class OwnName(NamedTuple):
    """What the name of one of our snapshots contains: the domain's UUID, the run, and if it is a base."""

    uuid: str
    run: str
    is_base: bool


def own_name(name: str) -> Optional[OwnName]:
    """Parse the name of a snapshot, None if it is not one of ours."""
    found = _OURS.fullmatch(name)
    return OwnName(found["uuid"], found["run"], bool(found["base"])) if found else None


def owned_prefix(uuid: str) -> str:
    """Return the prefix of the names of our snapshots of a domain."""
    return f"virt-rbd-backup.{uuid}."


def base_prefix(uuid: str) -> str:
    """Return the prefix of the names of a domain's base snapshots, which are no leftovers."""
    return f"virt-rbd-backup.kept.{uuid}."


def run_of(name: str) -> str:
    """Return the run that made our snapshot of this name."""
    return name.rpartition(".")[2]


def leftovers(cluster: Cluster, image: Image, domain: Domain, with_bases: bool = False) -> list[str]:
    """List the names of our leftover snapshots of this domain's image; none if the image is gone.

    `with_bases`: base snapshots too.
    """
    try:
        names = cluster.snapshot_names(image)
    except ImageGone:
        return []  # if it matters, the job fails over it
    prefixes = [owned_prefix(domain.uuid), *([base_prefix(domain.uuid)] if with_bases else [])]
    return [name for name in names if name.startswith(tuple(prefixes))]


def base_snapshots(cluster: Cluster, image: Image, domain: Domain) -> list[str]:
    """List the names of the image's base snapshots."""
    return [name for name in cluster.snapshot_names(image) if name.startswith(base_prefix(domain.uuid))]


def remove_leftovers(
    cluster: Cluster,
    image: Image,
    domain: Domain,
    reporter: Reporter,
    with_bases: bool = False,
    spared: Collection[str] = (),
    require_lock: Callable[[], None] = lambda: None,
) -> None:
    """Remove the image's leftover snapshots of interrupted runs. Only for the holder of the domain's lock.

    `with_bases`: base snapshots too. Names in `spared` stay. Before each removal `require_lock` raises if the
    lock was lost meanwhile: the snapshot may be another node's by now. Raises the first error in the end.
    """
    errors = []
    for name in leftovers(cluster, image, domain, with_bases):
        if name in spared:
            continue
        require_lock()
        try:
            cluster.remove_snapshot(image, name)
        except BackupError as error:
            errors.append(error)
            continue
        kind = "leftover" if name.startswith(owned_prefix(domain.uuid)) else "base"
        text = f"removed {kind} snapshot {name} of {image}"
        reporter.message(Level.WARNING, domain.name, text)
    if errors:
        raise errors[0]
