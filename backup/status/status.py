"""The command status: every domain with its newest restore point, from any node, at any time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from typing import Protocol

from ..errors import BackupError, ConfigError
from ..hypervisor.connections import Hypervisors
from ..job.failed_points import FailedPoints
from ..model import Domain, Level
from ..orphaned.places import domains_of_nodes
from ..protocols import Output, Reporter
from ..report.domain_record import read_records
from ..restore_point.known_points import remember
from ..selection import ON_OVERLAYS, choose
from ..settings import Settings
from ..stored import StoredPoint
from ..system.time_limit import CheckStop
from .cluster_state import with_cluster_state
from .domain_status import DomainStatus, all_domains, named

CEPH_LIMIT = 10  # seconds for an answer of Ceph


@dataclass(frozen=True)
class Status:
    """All domains, as they were at `now`. `complete`: every libvirt of this node has answered.

    `missing` are the groups of which nothing could be found out.
    """

    now: datetime
    domains: Sequence[DomainStatus]
    complete: bool = True
    missing: Sequence[str] = ()


class Search(Protocol):
    """Finds the status of domains; see StatusSearch."""

    def status(self, names: Sequence[str], ask_clusters: bool = True) -> Status: ...


@dataclass(frozen=True)
class StatusSearch:
    """Where the status comes from."""

    settings: Settings
    output: Output
    reporter: Reporter
    check_stop: CheckStop
    now: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def status(self, names: Sequence[str], ask_clusters: bool = True) -> Status:
        """Find the status of the domains with these names, UUIDs or patterns, without names of all.

        `ask_clusters`: for base snapshots and active jobs. A libvirt or cluster that does not answer is
        reported, and costs only what it alone knows. Raises BackupError if the repository cannot be read,
        ConfigError if no domain has one of the names, and the reason to stop.
        """
        if errors := self.output.configuration_errors():
            raise ConfigError(errors)
        settings, listed = self.settings, self.output.restore_points(self.check_stop)
        remember(listed, settings.state_dir)
        failed = FailedPoints(settings.state_dir).all()  # they look complete; the next run removes them
        points = [point for point in listed if point.id not in failed]
        with ExitStack() as stack:
            try:
                hypervisors = stack.enter_context(
                    Hypervisors(settings.libvirt_uris, settings.libvirt_timeout, self.check_stop)
                )
                defined = hypervisors.domains()
            except BackupError as error:
                self.check_stop()
                self.reporter.message(Level.ERROR, "", str(error))
                return Status(self.now, self._named(names, (), points), complete=False)
            for unreachable in hypervisors.unreachable:
                self.reporter.message(Level.ERROR, "", str(unreachable))
            domains = self._named(names, defined, points)
            if ask_clusters:
                domains = self._with_cluster_state(domains, defined, hypervisors)
        return Status(self.now, domains, not hypervisors.unreachable)

    def _with_cluster_state(
        self, domains: Sequence[DomainStatus], defined: Sequence[Domain], hypervisors: Hypervisors
    ) -> Sequence[DomainStatus]:
        settings, stack = self.settings, ExitStack()
        timeout = min(CEPH_LIMIT, settings.ceph_timeout)
        nodes = domains_of_nodes(hypervisors, defined, settings, timeout, stack)
        warn = partial(self.reporter.message, Level.WARNING, "")
        return with_cluster_state(domains, nodes, settings, warn, self.check_stop, stack.close)

    def _named(
        self, names: Sequence[str], defined: Sequence[Domain], points: Sequence[StoredPoint]
    ) -> Sequence[DomainStatus]:
        choices = choose(defined, self.settings)
        # an instant restore that never ends must not hide that there are no backups
        selected = [one.domain for one in choices if one.skipped in ("", ON_OVERLAYS)]
        found = all_domains(selected, points, read_records(self.settings.state_dir))
        return named([replace(one, group=self.settings.group) for one in found], names)
