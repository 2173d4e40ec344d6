"""The pools in which snapshots of ours may be: those of domains, of restore points, and CLEANUP_POOLS."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from ..ceph.cluster import Cluster
from ..ceph.clusters import Clusters
from ..errors import BackupError
from ..hypervisor.connections import Hypervisors
from ..model import ClusterAddress, Domain
from ..protocols import Output
from ..settings import Settings
from ..stored import StoredPoint
from ..system.time_limit import CheckStop, within

ANSWER_LIMIT = 60.0  # seconds for the output to list its restore points


@dataclass(frozen=True)
class PoolPlace:
    """A pool with the namespaces that are known to have images of ours, over one connection to its cluster.

    `origin` is what names it, "" if only restore points do: then it may be another node's.
    """

    cluster: Cluster
    pool: str
    namespaces: tuple[str, ...] = ("",)
    origin: str = ""


@dataclass(frozen=True)
class NodeDomains:
    """The domains of one libvirt, and the connections to their clusters."""

    domains: Sequence[Domain]
    clusters: Clusters


def domains_of_nodes(
    hypervisors: Hypervisors, domains: Sequence[Domain], settings: Settings, timeout: int, stack: ExitStack
) -> Sequence[NodeDomains]:
    """Return the domains of each libvirt; `stack` closes the connections to their clusters."""
    nodes = []
    for hypervisor in hypervisors:
        clusters = stack.enter_context(Clusters(hypervisor.secret, settings, timeout))
        nodes.append(NodeDomains([one for one in domains if one.uri == hypervisor.uri], clusters))
    return nodes


def known_points(output: Output, check_stop: CheckStop) -> Sequence[StoredPoint]:
    """List all restore points; () if there are none. Raises BackupError if that fails or takes too long."""
    deadline = time.monotonic() + ANSWER_LIMIT

    def check_time() -> None:
        check_stop()
        if time.monotonic() > deadline:
            raise BackupError(f"no answer within {ANSWER_LIMIT:.0f} s")

    def points() -> Sequence[StoredPoint]:
        for error in output.configuration_errors():
            raise error
        return output.restore_points(check_time)

    try:
        return within(ANSWER_LIMIT + 10, points, check_stop)
    except (BackupError, TimeoutError) as error:
        check_stop()
        text = "the pools are not searched for leftovers of other domains"
        raise BackupError(f"{text}, as the restore points cannot be listed: {error}") from error


def reached(clusters: Clusters, address: ClusterAddress) -> Cluster | None:
    """Return a connection, None if it cannot be made."""
    try:
        return clusters.at(address)
    except BackupError:
        return None


def pool_places(
    nodes: Sequence[NodeDomains], points: Sequence[StoredPoint], settings: Settings
) -> tuple[Sequence[PoolPlace], Sequence[str]]:
    """Return the pools to search, each once, and those of CLEANUP_POOLS whose cluster cannot be reached.

    A pool of a domain is searched as the domain's own cephx user, others as CEPH_USER if that can connect.
    """
    found: dict[tuple[str, str], PoolPlace] = {}
    connections: dict[str, Cluster] = {}  # by fsid
    missing = []
    for node in nodes:
        for cluster, pool, namespace in _of_domains(node):
            connections.setdefault(cluster.fsid, cluster)
            _add(found, PoolPlace(cluster, pool, (namespace,), "domains"))
    address = ClusterAddress(user=settings.ceph_user)
    own = reached(nodes[0].clusters, address) if nodes else None
    if own:
        connections[own.fsid] = own
    for text in settings.cleanup_pools:
        pool, _, namespace = text.partition("/")
        if own:
            _add(found, PoolPlace(own, pool, (namespace,), "CLEANUP_POOLS"))
        else:
            missing.append(text)
    for fsid, pool, namespace in _of_points(points):
        if fsid in connections:
            _add(found, PoolPlace(connections[fsid], pool, (namespace,)))
    return list(found.values()), missing


def _of_domains(node: NodeDomains) -> Iterator[tuple[Cluster, str, str]]:
    unreachable: set[ClusterAddress] = set()
    for domain in node.domains:
        for disk in domain.disks:
            if not disk.image or disk.address in unreachable:
                continue
            cluster = reached(node.clusters, disk.address)
            if cluster:
                yield cluster, disk.image.pool, disk.image.namespace
            else:
                unreachable.add(disk.address)


def _of_points(points: Sequence[StoredPoint]) -> Mapping[tuple[str, str, str], None]:
    """Return (fsid, pool, namespace) of all places where restore points had their locks."""
    places: dict[tuple[str, str, str], None] = {}
    for text in dict.fromkeys(text for point in points for text in point.locks):
        fsid, _, within = text.partition("/")
        pool, _, namespace = within.partition("/")
        places[fsid, pool, namespace] = None
    return places


def _add(found: dict[tuple[str, str], PoolPlace], new: PoolPlace) -> None:
    """Add a place, or its namespace to the one of the same pool."""
    key = (new.cluster.fsid, new.pool)
    known = found.get(key, new)
    namespaces = tuple(dict.fromkeys((*known.namespaces, *new.namespaces)))
    found[key] = PoolPlace(known.cluster, known.pool, namespaces, known.origin)
