"""What the clusters know of domains: who holds a domain's lock now, and what its base snapshots hold."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Callable, Optional

from ..errors import BackupError
from ..instant.under_way import UnderWay, under_way
from ..job.domain_lock import DomainLock, lock_at, lock_of
from ..model import Domain
from ..orphaned.places import NodeDomains, PoolPlace, pool_places
from ..orphaned.search import OwnSnapshot, PoolSearch
from ..settings import Settings
from ..system.parallel_calls import Calls
from ..system.time_limit import CheckStop, awaited
from .domain_status import BaseSnapshots, DomainStatus

AT_A_TIME = 16  # calls at the same time
GRACE = 4  # seconds for calls to end after a request to stop


def with_cluster_state(
    domains: Sequence[DomainStatus],
    nodes: Sequence[NodeDomains],
    settings: Settings,
    warn: Callable[[str], None],
    check_stop: CheckStop,
    close: Callable[[], None],
) -> Sequence[DomainStatus]:
    """Add the base snapshots and what runs now; `warn` gets what could not be found out.

    `nodes` are the domains that this node's libvirts define; `close` is called when the last call has ended.
    Raises the reason to stop, immediately even if a call hangs.
    """
    points = [one.newest for one in domains if one.newest]
    with Calls(AT_A_TIME, check_stop, close, GRACE) as calls:
        find_places = partial(pool_places, nodes, points, settings)
        places, missing = awaited(calls.submit(find_places), math.inf, check_stop)
        for pool in missing:
            warn(f"pool {pool} (CLEANUP_POOLS) not searched: CEPH_USER cannot connect")
        return _Asked(nodes, places, calls, warn, check_stop).complete(domains)


@dataclass(frozen=True)
class _Asked:
    """The clusters that are asked, by calls in parallel."""

    nodes: Sequence[NodeDomains]
    places: Sequence[PoolPlace]
    calls: Calls
    warn: Callable[[str], None]
    check_stop: CheckStop

    def complete(self, domains: Sequence[DomainStatus]) -> Sequence[DomainStatus]:
        if not self.places:
            self.warn("no cluster can be asked for base snapshots and active jobs")
            return domains
        bases = self._bases()
        restores = self._instant_restores()
        jobs = list(self.calls.map(self._job, domains))
        known = {one.uuid for one in domains}
        for uuid, restore in restores.items():
            if uuid not in known:
                self.warn(restore.title)
        return [
            replace(
                one,
                bases=bases.get(one.uuid, BaseSnapshots()),
                job=restores[one.uuid].text if one.uuid in restores else job,
            )
            for one, job in zip(domains, jobs)
        ]

    def _instant_restores(self) -> Mapping[str, UnderWay]:
        """Return the instant restores that are under way, or were interrupted, by the domains' UUIDs."""
        search = partial(_restores_in, failed=self.warn)
        return {one.record.uuid: one for found in self.calls.map(search, self.places) for one in found}

    def _bases(self) -> Mapping[str, BaseSnapshots]:
        """Search the pools; return the base snapshots by the domains' UUIDs."""
        search = PoolSearch(self.check_stop, self.warn, lambda *_: None)
        found = [one for one in search.snapshots(self.places, self.calls) if one.own.is_base]
        used: dict[str, list[Optional[int]]] = defaultdict(list)
        for snapshot, size in zip(found, self.calls.map(_used_bytes, found)):
            used[snapshot.own.uuid].append(size)
        return {uuid: BaseSnapshots(len(sizes), _sum(sizes)) for uuid, sizes in used.items()}

    def _job(self, domain: DomainStatus) -> str:
        """Return what holds the domain's lock; "" if nothing does, or it cannot be found out."""
        try:
            return next(filter(None, (lock.holder() for lock in self._locks(domain))), "")
        except BackupError as error:
            self.warn(f"{domain.name}: cannot find out whether a job is active: {error}")
            return ""

    def _locks(self, domain: DomainStatus) -> Iterator[DomainLock]:
        """Yield the lock as this node's definitions place it, and as the newest restore point does."""
        for node in self.nodes:
            for defined in node.domains:
                if defined.uuid == domain.uuid and _has_lock(defined):
                    yield lock_of(defined, node.clusters, 0)
        clusters = {place.cluster.fsid: place.cluster for place in self.places}
        for text in domain.newest.locks if domain.newest else ():
            fsid, pool, namespace = (*text.split("/"), "", "")[:3]
            if fsid in clusters and clusters[fsid].has_pool(pool):
                yield lock_at(clusters[fsid], pool, namespace, domain.uuid, 0)


def _has_lock(domain: Domain) -> bool:
    return any(disk.image and not domain.override.excludes(disk.target) for disk in domain.disks)


def _restores_in(place: PoolPlace, failed: Callable[[str], None]) -> Sequence[UnderWay]:
    return under_way(place.cluster, place.pool, place.namespaces, failed)


def _used_bytes(snapshot: OwnSnapshot) -> Optional[int]:
    try:
        return snapshot.cluster.bytes_changed_since(snapshot.image, snapshot.name)
    except BackupError:
        return None  # it is not known, and the table says so


def _sum(sizes: Sequence[Optional[int]]) -> Optional[int]:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None
