"""The command cleanup: thaws guests, and removes snapshots, locks and files that interrupted runs left."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Optional

from ..ceph.cluster import Cluster
from ..ceph.clusters import Clusters
from ..ceph.errors import ClusterError, LockHeld
from ..errors import BackupError
from ..hooks.hooks import Hooks
from ..hooks.job_hooks import run_missed_hooks
from ..hypervisor.connection import Hypervisor
from ..hypervisor.connections import Hypervisors
from ..job.domain_lock import CLEANUP, DomainLock, lock_at, lock_of
from ..job.leftovers import leftovers, remove_leftovers
from ..job_result import Phase
from ..model import Domain, Image, Level
from ..orphaned.places import domains_of_nodes, known_points
from ..orphaned.removal import OrphanRemoval
from ..protocols import Output, RunReporter
from ..quiesce.freeze_notes import FreezeNotes
from ..quiesce.thaw_rounds import thaw_guests
from ..restore.written_files import remove_left
from ..selection import Choice, choose, select_disks
from ..settings import Settings
from ..system.child_records import begin_to_end_orphans
from ..system.concurrency_limit import Slots
from ..system.parallel_calls import Calls
from ..system.service import in_a_service
from ..system.stop_request import StopRequest
from ..system.time_limit import awaited
from ..watch.node_lock import only_run, prepare_runtime_dir
from ..watch.other_groups import FindSettings, no_others, thaw_other_groups, with_notes
from ..watch.thaw_all import thaw_all
from .drafts import remove_all_drafts
from .instant_restores import instant_restores

AT_A_TIME = 16  # domains that are cleaned at the same time
BY_HAND = 60.0  # seconds to try to thaw and resume the guests of interrupted runs
SEARCH_IN_A_SERVICE = 60.0  # seconds to search all images: a timer's next run goes on
IN_A_SERVICE = 200.0  # the same after a service's run, which its watchdog ends with
GRACE = 4  # seconds to release locks after a request to stop; a lock that is not released expires


def clean_node(
    settings: Settings,
    reporter: RunReporter,
    stop: StopRequest,
    with_bases: bool = False,
    output: Optional[Output] = None,
    other_groups: FindSettings = no_others,
) -> int:
    """Thaw or resume all guests of this node, and remove leftovers; return how many domains that failed for.

    Domains that are not selected are cleaned too, but their failures are warnings. `with_bases`: remove base
    snapshots too. `output`: search other domains' snapshots too, which its restore points distinguish.
    Raises AlreadyRunning while a run is active, as its snapshots are no leftovers, and the reason to stop.
    """
    prepare_runtime_dir(settings.node_dir)
    with only_run(settings.runtime_dir, stop.check):
        seconds = IN_A_SERVICE if in_a_service() else BY_HAND
        failed = thaw_guests(settings, reporter, seconds=seconds, check_stop=stop.check)
        thaw_other_groups(settings, other_groups, reporter, stop.check)
        begin_to_end_orphans(settings.runtime_dir)
        remove_all_drafts(settings)
        failed += run_missed_hooks(Hooks(settings, "", reporter), check_stop=stop.check)
        stop.check()
        with Hypervisors(settings.libvirt_uris, settings.libvirt_timeout, stop.check) as hypervisors:
            domains = hypervisors.domains()
            for error in hypervisors.unreachable:
                failed += 1
                reporter.message(Level.ERROR, "", str(error))
            connected = {hypervisor.uri: hypervisor for hypervisor in hypervisors}
            remove_left(settings.state_dir, connected.get, reporter)
            cleaner = Cleaner(settings, reporter, stop, with_bases, choose(domains, settings))
            for hypervisor in hypervisors:
                own = [domain for domain in domains if domain.uri == hypervisor.uri]
                failed += cleaner.clean(own, hypervisor)
            if output:
                cleaner.remove_orphans(domains, hypervisors, output)
    return failed


def thaw_node(
    settings: Settings, reporter: RunReporter, stop: StopRequest, other_groups: FindSettings = no_others
) -> int:
    """Thaw or resume the guests that interrupted runs of all groups left quiesced, until none is left.

    Without the node's lock, so that no run is refused or delayed. Returns how many records cannot be read.
    Raises the reason to stop.
    """
    thaw_all(settings, reporter, stop.check, other_groups)
    groups = with_notes(settings, no_others)
    unreadable = [error for one in groups for error in FreezeNotes(one.runtime_dir).unreadable()]
    for error in unreadable:
        reporter.message(Level.ERROR, "", str(error))
    return len(unreadable)


@dataclass
class Cleaner:
    """Removes leftover snapshots and locks, of many domains at a time.

    `choices` are the domains with the reasons why some are not selected; without them all are.
    """

    settings: Settings
    reporter: RunReporter
    stop: StopRequest
    with_bases: bool = False
    choices: Sequence[Choice] = ()
    _reported: float = field(default_factory=time.monotonic)  # when progress was last reported

    def clean(self, domains: Sequence[Domain], hypervisor: Hypervisor) -> int:
        """Clean the domains of this libvirt; return how many of the selected ones that failed for.

        Raises the reason to stop, immediately even if a call hangs.
        """
        settings, failed = self.settings, 0
        skipped = {choice.domain.uuid: choice.skipped for choice in self.choices if _at(choice, hypervisor)}
        for domain in domains:
            self.reporter.planned(domain.uuid, domain.name, 0)
        deletions = self._deletions()
        stack = ExitStack()
        clusters = stack.enter_context(Clusters(hypervisor.secret, settings, settings.ceph_timeout))
        with Calls(AT_A_TIME, close=stack.close, grace=GRACE) as calls:
            outcomes = [calls.submit(partial(self._clean, domain, clusters, deletions)) for domain in domains]
            for domain, outcome in zip(domains, outcomes):
                has_failed = self._failed(domain, outcome, outcomes, skipped.get(domain.uuid, ""))
                self.reporter.ended(domain.uuid, has_failed)
                failed += has_failed
        return failed

    def remove_orphans(self, domains: Sequence[Domain], hypervisors: Hypervisors, output: Output) -> None:
        """Remove snapshots of ours that no domain can claim. Raises the reason to stop.

        None without the restore points: they show which are base snapshots, and of which node.
        """
        settings, stack = self.settings, ExitStack()
        try:
            points = known_points(output, self.stop.check)
        except BackupError as error:
            self.stop.check()
            self.reporter.message(Level.WARNING, "", str(error))
            return
        warn = partial(self.reporter.message, Level.WARNING, "")
        timeout = settings.ceph_timeout
        for restore in instant_restores(
            hypervisors, domains, points, settings, timeout, self.stop.check, warn
        ):
            level = Level.WARNING if restore.needs_admin else Level.INFO
            self.reporter.message(level, restore.record.name, f"nothing is removed of the {restore.title}")
        nodes = domains_of_nodes(hypervisors, domains, settings, timeout, stack)
        limit = SEARCH_IN_A_SERVICE if in_a_service() else math.inf
        removal = OrphanRemoval(settings, self.reporter, self.stop, self._deletions(), self.with_bases, limit)
        removal.remove(nodes, not hypervisors.unreachable, points, stack.close)

    def _deletions(self) -> Slots:
        return Slots(
            self.settings.node_dir,
            "deletion",
            self.settings.snapshot_deletes,
            partial(self.reporter.message, Level.WARNING, ""),
            self._is_stopping,
        )

    def _failed(
        self, domain: Domain, outcome: Future[None], outcomes: Sequence[Future[None]], skipped: str
    ) -> bool:
        """Wait for a domain's outcome; return whether it counts as a failure."""

        def check_stop() -> None:
            self.stop.check()
            self._report_progress(outcomes)

        try:
            awaited(outcome, math.inf, check_stop)
        except LockHeld as error:
            self.reporter.message(Level.INFO, domain.name, error.message)
        except BackupError as error:
            self.stop.check()
            if not skipped:
                self.reporter.message(Level.ERROR, domain.name, str(error))
                return True
            self.reporter.message(Level.WARNING, domain.name, f"not selected ({skipped}): {error}")
        return False

    def _is_stopping(self) -> bool:
        """Raise the reason to stop: snapshots that wait for a slot are left to the next cleanup."""
        self.stop.check()
        return False

    def _clean(self, domain: Domain, clusters: Clusters, deletions: Slots) -> None:
        self.stop.check()
        images = self._checked(domain, clusters)
        if not any(images.values()) and not self._has_lock(domain, clusters):
            return
        self.reporter.phase(domain.name, Phase.TIDY)
        seconds = self.settings.lock_duration
        places: set[str] = set()
        if saved := self._saved(domain):
            lock = lock_of(saved, clusters, seconds, CLEANUP)
            self._clean_locked(lock, images, domain, deletions)
            places.update(lock.places)
        for (cluster, image), has_leftovers in images.items():
            lock = lock_at(cluster, image.pool, image.namespace, domain.uuid, seconds, CLEANUP)
            if not has_leftovers or places.issuperset(lock.places):
                continue
            places.update(lock.places)
            try:
                self._clean_locked(lock, images, domain, deletions)
            except ClusterError as error:  # such as a pool where a lock is not permitted
                text = f"leftovers of {image}, which is not backed up, stay: {error}"
                self.reporter.message(Level.WARNING, domain.name, text)

    def _clean_locked(
        self,
        lock: DomainLock,
        images: Mapping[tuple[Cluster, Image], bool],
        domain: Domain,
        deletions: Slots,
    ) -> None:
        """Remove the leftovers of those images of the domain that the lock covers. Raises LockHeld."""
        lost = StopRequest()  # for this lock only

        def check_stop() -> None:
            self.stop.check()
            lost.check()

        with lock.locked(lost, self.reporter, domain.name):
            # elsewhere, what was made since the first look may be of a run with other settings
            for cluster, image in (one for one in images if lock.covers(*one)):
                check_stop()
                with deletions.one():
                    remove_leftovers(
                        cluster, image, domain, self.reporter, self.with_bases, require_lock=check_stop
                    )

    def _checked(self, domain: Domain, clusters: Clusters) -> Mapping[tuple[Cluster, Image], bool]:
        """Return for each image whether it has leftovers.

        If an excluded image cannot be checked, that is a warning.
        """
        found = {}
        saved = {disk.target for disk in select_disks(domain, self.settings).disks if disk.image}
        for disk in domain.disks:
            if not disk.image:
                continue
            try:
                cluster = clusters.at(disk.address)
                found[cluster, disk.image] = bool(leftovers(cluster, disk.image, domain, self.with_bases))
            except BackupError as error:
                if disk.target in saved:
                    raise
                text = f"{disk.target} ({disk.image}), which is not backed up: {error}"
                self.reporter.message(Level.WARNING, domain.name, text)
        return found

    def _has_lock(self, domain: Domain, clusters: Clusters) -> bool:
        saved = self._saved(domain)  # a lock lies beside an image
        return saved is not None and lock_of(saved, clusters, self.settings.lock_duration).exists()

    def _saved(self, domain: Domain) -> Optional[Domain]:
        """Return the domain with the images that a backup saves, None if there are none.

        In the pools of others a lock may not be permitted.
        """
        disks = tuple(disk for disk in select_disks(domain, self.settings).disks if disk.image)
        return replace(domain, disks=disks) if disks else None

    def _report_progress(self, outcomes: Sequence[Future[None]]) -> None:
        interval, now = self.settings.progress_interval, time.monotonic()
        if interval and now >= self._reported + interval:
            self._reported = now
            ended = sum(outcome.done() for outcome in outcomes)
            text = f"{ended} of {len(outcomes)} domains checked for leftovers"
            self.reporter.message(Level.INFO, "", text)


def _at(choice: Choice, hypervisor: Hypervisor) -> bool:
    return choice.domain.uri == hypervisor.uri
