"""Our snapshots by their names: base snapshots, and leftovers of interrupted runs, which are removed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Callable

from ..ceph.cluster import Cluster
from ..ceph.errors import ImageGone
from ..errors import BackupError
from ..model import Domain, Image, Level
from ..protocols import Reporter


def owned_prefix(uuid: str) -> str:
    """What the names of a domain's snapshots begin with: the mark that they are ours, and whose."""
    return f"virt-rbd-backup.{uuid}."


def kept_prefix(uuid: str) -> str:
    """What the names of those begin with that the next run is to build on: no leftovers."""
    return f"virt-rbd-backup.kept.{uuid}."


def run_of(name: str) -> str:
    """Tell which run made a snapshot of this name of ours."""
    return name.rpartition(".")[2]


def leftovers(cluster: Cluster, image: Image, domain: Domain, kept: bool = False) -> list[str]:
    """Name the snapshots of this image that are this domain's and ours; none where the image is gone.

    `kept`: those too that are kept for the next run.
    """
    try:
        names = cluster.snapshot_names(image)
    except ImageGone:
        return []  # where it matters, the job itself will say so
    prefixes = (owned_prefix(domain.uuid), kept_prefix(domain.uuid)) if kept else owned_prefix(domain.uuid)
    return [name for name in names if name.startswith(prefixes)]


def kept_snapshots(cluster: Cluster, image: Image, domain: Domain) -> list[str]:
    """Name those of a domain's snapshots that are kept for its next run."""
    return [name for name in cluster.snapshot_names(image) if name.startswith(kept_prefix(domain.uuid))]


def remove_leftovers(
    cluster: Cluster,
    image: Image,
    domain: Domain,
    reporter: Reporter,
    kept: bool = False,
    spared: Collection[str] = (),
    require_lock: Callable[[], None] = lambda: None,
) -> None:
    """Remove what killed runs left of this domain. Only for the holder of the domain's lock.

    `kept`: what was kept for the next run, too. What is `spared` by its name stays. Before each removal
    `require_lock` raises if the lock was lost meanwhile: what was listed may be another node's by now. Raises
    the first error once all were tried.
    """
    errors = []
    for name in leftovers(cluster, image, domain, kept):
        if name in spared:
            continue
        require_lock()
        try:
            cluster.remove_snapshot(image, name)
        except BackupError as error:
            errors.append(error)
            continue
        left = "a killed run left" if name.startswith(owned_prefix(domain.uuid)) else "was kept"
        text = f"removed snapshot {name} of {image} that {left}"
        reporter.message(Level.WARNING, domain.name, text)
    if errors:
        raise errors[0]
