"""Largest first: so that a run's length is not decided by one big domain that started last."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter

from .connect import Clusters
from .errors import BackupError
from .hypervisor import Hypervisor
from .hypervisors import Hypervisors
from .model import Disk, Domain
from .settings import Settings

LOOKS = 16  # images that are asked for their size at the same time
PATIENCE = 10  # seconds for Ceph; what can't be told by then, the job itself will tell


def largest_first(
    domains: Sequence[Domain], hypervisors: Hypervisors, settings: Settings
) -> list[tuple[Domain, int]]:
    """Sort by the sum of the images' sizes, and give it; an image that can't be opened counts as empty."""
    sizes: dict[Disk, int] = {}
    for hypervisor in hypervisors:
        disks = [disk for domain in domains if domain.uri == hypervisor.uri for disk in domain.disks]
        sizes.update(_sizes(disks, hypervisor, settings))
    sums = [(domain, sum(sizes[disk] for disk in domain.disks)) for domain in domains]
    return sorted(sums, key=itemgetter(1), reverse=True)


def _sizes(disks: Sequence[Disk], hypervisor: Hypervisor, settings: Settings) -> dict[Disk, int]:
    patience = min(PATIENCE, settings.ceph_timeout)
    with Clusters(hypervisor, settings, patience) as clusters, ThreadPoolExecutor(LOOKS) as threads:
        return dict(zip(disks, threads.map(lambda disk: _size(disk, clusters), disks)))


def _size(disk: Disk, clusters: Clusters) -> int:
    try:
        return clusters.at(disk.address).image_size(disk.image) if disk.image else 0
    except BackupError:
        return 0  # its domain's job fails over it, with a message of its own
