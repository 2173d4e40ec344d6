"""From a disk's address to its cluster, with the key that libvirt keeps for it."""

from __future__ import annotations

from contextlib import ExitStack

from .cluster import Cluster
from .hypervisor import Hypervisor
from .model import ClusterAddress, Domain
from .settings import Settings


def connect(address: ClusterAddress, hypervisor: Hypervisor, settings: Settings) -> Cluster:
    """Connect as the domain itself does. Raises BackupError."""
    key = hypervisor.secret(address)
    return Cluster(address, key, settings.ceph_conf, settings.ceph_timeout, settings.max_read_rate)


def connect_all(
    domain: Domain, hypervisor: Hypervisor, settings: Settings, stack: ExitStack
) -> dict[ClusterAddress, Cluster]:
    """Connect to all clusters of the domain's images, once for each address; `stack` closes them."""
    addresses = dict.fromkeys(disk.address for disk in domain.disks if disk.image)
    return {address: stack.enter_context(connect(address, hypervisor, settings)) for address in addresses}
