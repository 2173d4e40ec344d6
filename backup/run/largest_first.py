"""The order of jobs: the largest domain first, so that a run does not end with one long job alone."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from itertools import chain
from operator import itemgetter

from ..ceph.clusters import Clusters
from ..ceph.errors import ClusterError
from ..errors import BackupError
from ..hypervisor.connection import Hypervisor
from ..hypervisor.connections import Hypervisors
from ..model import ClusterAddress, Disk, Domain
from ..settings import Settings
from ..system.parallel_calls import Calls
from ..system.time_limit import CheckStop, awaited, never_stop

AT_A_TIME = 16  # images whose size is read at the same time
CEPH_LIMIT = 10  # seconds for one operation of Ceph; the job itself reports what fails
LIMIT = 30  # seconds for all sizes together


def largest_first(
    domains: Sequence[Domain],
    hypervisors: Hypervisors,
    settings: Settings,
    check_stop: CheckStop = never_stop,
) -> list[tuple[Domain, int]]:
    """Sort by the sum of the images' sizes, and return it too.

    An image that cannot be opened, or whose size is not known after LIMIT seconds, counts as empty.
    """
    deadline = time.monotonic() + LIMIT
    sizes: dict[Disk, int] = {}
    with ExitStack() as stack:
        outcomes = [_sizes(domains, hypervisor, settings, stack) for hypervisor in hypervisors]
        for disk, outcome in chain.from_iterable(outcomes):
            try:
                sizes[disk] = awaited(outcome, deadline - time.monotonic(), check_stop)
            except TimeoutError:
                sizes[disk] = 0
    sums = [(domain, sum(sizes[disk] for disk in domain.disks)) for domain in domains]
    return sorted(sums, key=itemgetter(1), reverse=True)


def _sizes(
    domains: Sequence[Domain], hypervisor: Hypervisor, settings: Settings, stack: ExitStack
) -> list[tuple[Disk, Future[int]]]:
    """Begin to read the sizes of all images at this libvirt; `stack` abandons calls that hang."""
    open_ones = ExitStack()
    clusters = open_ones.enter_context(
        Clusters(hypervisor.secret, settings, min(CEPH_LIMIT, settings.ceph_timeout))
    )
    calls = stack.enter_context(Calls(AT_A_TIME, close=open_ones.close))
    silent: set[tuple[ClusterAddress, str]] = set()
    disks = [disk for domain in domains if domain.uri == hypervisor.uri for disk in domain.disks]
    return [(disk, calls.submit(partial(_size, disk, clusters, silent))) for disk in disks]


def _size(disk: Disk, clusters: Clusters, silent: set[tuple[ClusterAddress, str]]) -> int:
    """Return an image's size, 0 in a pool that is `silent`: where the size of another image timed out."""
    if not disk.image or (place := (disk.address, disk.image.place)) in silent:
        return 0
    try:
        return clusters.at(disk.address).image_size(disk.image)
    except BackupError as error:  # its domain's job fails with a message of its own
        if isinstance(error, ClusterError) and error.number == errno.ETIMEDOUT:
            silent.add(place)
        return 0
