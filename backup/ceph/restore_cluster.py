"""The cluster that restores write to, and that verifications and drills read from."""

from __future__ import annotations

from ..model import ClusterAddress, Level
from ..protocols import Reporter
from ..settings import Settings
from ..system.stop_request import StopRequest
from .cluster import Cluster
from .retry import CephRetry


def restore_cluster(settings: Settings, stop: StopRequest, reporter: Reporter, domain: str = "") -> Cluster:
    """Connect to the cluster of CEPH_CONF as CEPH_USER. Raises ClusterError."""

    def report(level: Level, text: str) -> None:
        reporter.message(level, domain, text)

    address = ClusterAddress(user=settings.ceph_user)
    retry = CephRetry(settings.ceph_stall_timeout, stop.check, report)
    return Cluster(address, "", settings.ceph_conf, settings.ceph_timeout, retry=retry)
