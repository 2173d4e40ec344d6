"""Putting right what a killed run left: guests that stand still, snapshots, locks."""

from __future__ import annotations

from collections.abc import Sequence

from .cluster_errors import LockHeld
from .connect import Clusters
from .errors import BackupError
from .hooks import Hooks
from .hypervisor import Hypervisor
from .hypervisors import Hypervisors
from .job_hooks import run_owed
from .lock import lock_of
from .model import Domain, Level
from .node import only_run
from .protocols import Reporter
from .settings import Settings
from .snapshots import leftovers, remove_leftovers
from .stop import StopRequest
from .thaw import let_go_noted


def clean_node(settings: Settings, reporter: Reporter, kept: bool = False) -> int:
    """Let all domains of this node go and remove their leftovers; return how many that failed for.

    `kept`: remove too what is kept for the next run.
    Raises AlreadyRunning while a run is active, as what it left is not left.
    """
    with only_run(settings.runtime_dir):
        failed = let_go_noted(settings, reporter) + run_owed(Hooks(settings, "", reporter))
        with Hypervisors(settings.libvirt_uris, settings.libvirt_timeout) as hypervisors:
            domains = hypervisors.domains()
            for error in hypervisors.unreachable:
                failed += 1
                reporter.message(Level.ERROR, "", str(error))
            for hypervisor in hypervisors:
                own = [domain for domain in domains if domain.uri == hypervisor.uri]
                failed += remove_all_leftovers(own, hypervisor, settings, reporter, kept)
    return failed


def remove_all_leftovers(
    domains: Sequence[Domain],
    hypervisor: Hypervisor,
    settings: Settings,
    reporter: Reporter,
    kept: bool = False,
) -> int:
    """Remove the snapshots and locks that killed runs left; return how many domains that failed for."""
    failed = 0
    with Clusters(hypervisor, settings, settings.ceph_timeout) as clusters:
        for domain in domains:
            try:
                _remove(domain, clusters, settings, reporter, kept)
            except LockHeld as error:
                reporter.message(Level.INFO, domain.name, error.message)
            except BackupError as error:
                failed += 1
                reporter.message(Level.ERROR, domain.name, str(error))
    return failed


def _remove(domain: Domain, clusters: Clusters, settings: Settings, reporter: Reporter, kept: bool) -> None:
    images = [(clusters.at(disk.address), disk.image) for disk in domain.disks if disk.image]
    if not images:
        return
    lock = lock_of(domain, clusters, settings.lock_duration)
    if not lock.exists() and not any(leftovers(*one, domain, kept) for one in images):
        return
    with lock.held(StopRequest(), reporter, domain.name):
        for cluster, image in images:
            remove_leftovers(cluster, image, domain, reporter, kept)
