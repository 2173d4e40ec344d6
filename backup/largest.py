"""Largest first: so that a run's length is not decided by one big domain that started last."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

from .cluster import Cluster
from .connect import connect
from .errors import BackupError
from .hypervisor import Hypervisor
from .model import ClusterAddress, Disk, Domain
from .settings import Settings

LOOKS = 16  # images that are asked for their size at the same time
PATIENCE = 10  # seconds for Ceph; what can't be told by then, the job itself will tell


def largest_first(domains: Sequence[Domain], hypervisor: Hypervisor, settings: Settings) -> list[Domain]:
    """Sort by the sum of the images' sizes; an image that can't be opened counts as empty."""
    disks = [disk for domain in domains for disk in domain.disks if disk.image]
    with ExitStack() as stack, ThreadPoolExecutor(LOOKS) as threads:
        clusters = _reachable({disk.address for disk in disks}, hypervisor, settings, stack)
        sizes = dict(zip(disks, threads.map(lambda disk: _size(disk, clusters), disks)))
    return sorted(domains, key=lambda domain: sum(sizes.get(disk, 0) for disk in domain.disks), reverse=True)


def _reachable(
    addresses: set[ClusterAddress], hypervisor: Hypervisor, settings: Settings, stack: ExitStack
) -> dict[ClusterAddress, Cluster]:
    quick = replace(settings, ceph_timeout=min(PATIENCE, settings.ceph_timeout))
    clusters = {}
    for address in addresses:
        try:
            clusters[address] = stack.enter_context(connect(address, hypervisor, quick))
        except BackupError:
            continue  # a domain there fails in its own job, with its own message
    return clusters


def _size(disk: Disk, clusters: dict[ClusterAddress, Cluster]) -> int:
    try:
        return clusters[disk.address].image_size(disk.image) if disk.image and disk.address in clusters else 0
    except BackupError:
        return 0  # as above
