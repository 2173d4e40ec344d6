"""The backup of one domain, from its lock to its last snapshot's removal."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Callable, Optional

from ..ceph.clusters import Clusters
from ..ceph.errors import HeldByCleanup, HeldByDead, LockHeld, SnapshotInUse
from ..ceph.retry import STOP_POLL, CephRetry
from ..command import COMMAND
from ..errors import BackupError, FreezeFailed, PreviousBackupDamaged, Skipped
from ..hooks.hooks import Hooks
from ..hooks.job_hooks import JobHooks
from ..hypervisor.connection import Hypervisor
from ..hypervisor.connections import located
from ..job_result import JobResult, Phase, Status
from ..model import Domain, Gap, Level
from ..protocols import Output, Reporter, SnapshotSource
from ..quiesce.booting import AgentWait
from ..quiesce.migration_watch import require_ready
from ..selection import require_complete, select_disks
from ..settings import Settings
from ..stored import PointId, RestorePoint, SavedImage
from ..system.concurrency_limit import Slots
from ..system.stop_request import StopRequest
from ..system.undo import undone_by
from ..transfer.compare import compare_with_snapshot, pieces_from_output
from .domain_lock import DomainLock, lock_of
from .failed_points import FailedPoints
from .job_order import JobOrder
from .leftovers import leftovers, remove_leftovers
from .previous_backup import PreviousBackup
from .qcow2_chain import require_known_layers
from .quiesced_snapshots import QuiescedSnapshots
from .snapshots import DiskSnapshot, DomainSnapshots, gone_afterwards, prepared

PHASE_MARGIN = 120  # seconds that a phase may take longer than the limits of its operations


@dataclass
class DomainJob:
    """One domain's backup. Satisfies protocols.Job.

    `on_saved` gets the result as soon as the restore point is complete: what follows only tidies up, and may
    end this process.
    """

    order: JobOrder
    settings: Settings
    output: Output
    reporter: Reporter
    stop: StopRequest
    on_saved: Callable[[JobResult], None] = lambda _result: None
    _snapshots: Optional[DomainSnapshots] = field(default=None, init=False)
    _previous: Optional[PreviousBackup] = field(default=None, init=False)
    _taker: QuiescedSnapshots = field(init=False)
    _leftovers: int = field(default=0, init=False)
    _domain_lock: Optional[DomainLock] = field(default=None, init=False)
    _hooks: JobHooks = field(init=False)
    _output_saves: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._hooks = JobHooks(Hooks(self.settings, self.order.run, self.reporter, self.order.name))
        self._taker = QuiescedSnapshots(
            self.order, self.settings, self.reporter, self.stop, self.require_lock
        )

    @property
    def verifies(self) -> bool:
        """Whether the saved images are compared with their snapshots."""
        return self.order.verify

    def check_stop(self) -> None:
        self.stop.check()

    def require_lock(self) -> None:
        """Wait until this job provably has the domain's lock. Raises if it is lost."""
        while not self.stop.leased:
            time.sleep(STOP_POLL)
            self.check_stop()

    def image_saved(self, source: SnapshotSource, image: SavedImage) -> None:
        """Compare the saved image with the snapshot, if ordered; then begin to remove the snapshot.

        Only with the lock: while it had expired, another node may have removed the snapshot as a leftover
        and begun to save the domain itself.
        """
        assert self._snapshots
        self.require_lock()
        if self.order.verify and image.size:
            self._verify(source, image)
        if not self.output.keeps_base_snapshots:
            self._snapshots.release(source)

    def _verify(self, source: SnapshotSource, image: SavedImage) -> None:
        def progress(done: int) -> None:
            self.reporter.progress(self.order.name, image.target, done, image.size)

        self._begin(Phase.VERIFY, self._output_limit)
        with (
            source.open() as reader,
            self.output.image(image, self.check_stop) as content,
        ):
            compare_with_snapshot(pieces_from_output(content, image.size), image, reader, progress)
        self._begin(Phase.STREAM, self._output_limit)
        self.reporter.message(Level.INFO, self.order.name, f"{image.target} ({image.image}) verified")

    def run(self) -> JobResult:
        """Back up the domain and return the result; only bugs are raised."""
        started = time.monotonic()
        result = JobResult(self.order.name, self.order.uuid, Status.SAVED)
        try:
            with ExitStack() as stack:
                result = self._saved(result, stack)
                self.on_saved(self._measured(result, started))
            self._hooks.require_success()
        except Skipped as error:
            result = replace(result, status=Status.SKIPPED, reason=error.message)
        except BackupError as error:
            reason = f"saved, but {error.message}" if result.images else error.message
            transient = error.transient and not result.images
            withdraw = self._output_saves and not result.images
            if withdraw:  # at once: this process, or the main one, may be killed
                failed = PointId(self.order.run, self.order.uuid, self.order.attempt)
                FailedPoints(self.settings.state_dir).add(failed)
            result = replace(
                result,
                status=Status.FAILED,
                reason=reason,
                hint=error.hint,
                transient=transient,
                full_read=isinstance(error, PreviousBackupDamaged),
                withdraw=withdraw,
                freeze_failed=isinstance(error, FreezeFailed),
            )
        return self._hooks.after_job(self._measured(result, started))

    def _measured(self, result: JobResult, started: float) -> JobResult:
        quiesced = self._taker.quiesced
        return replace(
            result,
            seconds=time.monotonic() - started,
            frozen_seconds=quiesced.seconds if quiesced else 0.0,
            frozen_at=quiesced.since if quiesced and quiesced.seconds else None,
            leftovers=self._leftovers,
        )

    def _saved(self, result: JobResult, stack: ExitStack) -> JobResult:
        """Save the domain; the caller unwinds `stack`, after errors too."""
        settings = self.settings
        self._begin(Phase.PREPARE, 6 * settings.ceph_timeout + settings.agent_boot_timeout)
        uris = dict.fromkeys((self.order.uri, *settings.libvirt_uris))
        hypervisor, domain = stack.enter_context(
            located(self.order.uuid, list(uris), settings.libvirt_timeout, self.check_stop)
        )
        require_ready(domain)
        require_complete(select_disks(domain, self.settings))
        # before the lock, so that nothing waits for it
        report = partial(self._report, Level.INFO)
        AgentWait(hypervisor, settings, self.check_stop, report).wait(domain)
        snapshots = self._snapshots = self._locked_snapshots(domain, hypervisor, stack)
        assert self._domain_lock
        # in the worst case one after the other, after those of all other workers
        operations = (settings.workers * 2 + 1) * len(snapshots.snapshots) + 2
        stack.callback(self._begin, Phase.TIDY, operations * settings.ceph_timeout)
        self.check_stop()
        with self._hooks.around_freeze(domain, self.check_stop) as variables:
            self._begin(Phase.SNAPSHOT, self._taker.limit(domain))
            point = self._taker.take(domain, hypervisor, snapshots, self._domain_lock.places)
            variables["CONSISTENCY"] = point.consistency.value
        self._report_not_saved(point)
        self._begin(Phase.STREAM, self._output_limit)
        require_known_layers(snapshots.snapshots)
        self._output_saves = True
        images = self.output.save(point, snapshots.snapshots, self)
        if self._previous:
            stack.callback(self._keep_base_snapshots, snapshots, self._previous, domain, self._domain_lock)
        return replace(
            result,
            consistency=point.consistency,
            taken=point.taken,
            images=images,
            skipped_disks=tuple(disk for disk in point.domain.disks if not disk.image),
        )

    def _report_not_saved(self, point: RestorePoint) -> None:
        for disk in point.domain.disks:
            if disk.gap is Gap.FOREIGN:
                self._report(Level.INFO, f"{disk} is not backed up: {disk.skipped}")
        for text in point.definition.not_saved:
            self._report(Level.INFO, f"{text}: not backed up")

    def _keep_base_snapshots(
        self, snapshots: DomainSnapshots, previous: PreviousBackup, domain: Domain, lock: DomainLock
    ) -> None:
        """Keep this backup's snapshots as base snapshots, and no others."""
        operations = 4 * len(snapshots.snapshots)
        self._begin(Phase.TIDY, operations * self.settings.ceph_timeout)
        self.require_lock()
        snapshots.keep_as_bases(domain, self.require_lock)
        previous.remove_dropped(self.reporter, lock, self.require_lock)

    def _begin(self, phase: Phase, limit: float) -> None:
        """Enter a phase; `limit` is the sum of the time limits of its Ceph and output operations."""
        margin = PHASE_MARGIN + 2 * self.settings.libvirt_timeout
        self.reporter.phase(self.order.name, phase, margin + limit)

    def _report(self, level: Level, text: str) -> None:
        self.reporter.message(level, self.order.name, text)

    @property
    def _output_limit(self) -> int:
        """Without LOCK_WAIT: outputs report each attempt while they wait for a lock."""
        return 2 * self.settings.output_stall_timeout + self.settings.ceph_timeout

    def _locked_snapshots(self, domain: Domain, hypervisor: Hypervisor, stack: ExitStack) -> DomainSnapshots:
        """Lock the domain, remove leftovers, and prepare its snapshots; none is made yet."""
        settings = self.settings
        if not any(disk.image for disk in select_disks(domain, settings).disks):
            raise BackupError("the domain no longer has an RBD image to back up", f"see `{COMMAND} list`")
        retry = CephRetry(settings.ceph_stall_timeout, self.check_stop, self._report)
        secret = partial(hypervisor.secret, check_stop=self.check_stop)
        clusters = stack.enter_context(Clusters(secret, settings, settings.ceph_timeout, retry))
        self._lock(domain, clusters, stack)
        alive = partial(self._report, Level.DEBUG)  # for each disk: a phase's limit is that of a few calls
        snapshots = prepared(select_disks(domain, settings), clusters, self.order.run, alive)
        if self.output.keeps_base_snapshots:
            self._previous = stack.enter_context(
                PreviousBackup(snapshots, domain, self.output, self.order.known, self.check_stop, self._warn)
            )
            if not self.order.full_read:
                snapshots = [replace(snapshot, base_of=self._previous.base_of) for snapshot in snapshots]
        for snapshot in snapshots:
            alive(f"{snapshot.disk.target}: checking image {snapshot.image} for leftovers")
            self._remove_leftovers(snapshot, domain, stack)
        warn = partial(self.reporter.message, Level.WARNING, domain.name)
        deletions = Slots(
            settings.node_dir, "deletion", settings.snapshot_deletes, warn, lambda: self.stop.requested
        )
        return stack.enter_context(gone_afterwards(snapshots, deletions, self.reporter, domain.name))

    def _remove_leftovers(self, snapshot: DiskSnapshot, domain: Domain, stack: ExitStack) -> None:
        """Remove the image's leftovers of interrupted runs.

        One that another client uses is retried after the backup, which fails if that fails too.
        """
        found = leftovers(snapshot.cluster, snapshot.image, domain)
        if not found:
            return  # without asking the output for the previous backup
        if self._previous:  # the output is asked for it
            self._begin(Phase.PREPARE, self._output_limit)
        spared = {snapshot.base.snapshot} if snapshot.base else set()
        self._leftovers += len({*found} - spared)
        remove = partial(
            remove_leftovers,
            snapshot.cluster,
            snapshot.image,
            domain,
            self.reporter,
            require_lock=self.require_lock,
        )
        try:
            remove(spared=spared)
        except SnapshotInUse:
            later = partial(remove, spared={*spared, snapshot.name})  # that may be the next run's base
            stack.enter_context(undone_by(later, self.reporter, domain.name))

    def _warn(self, text: str) -> None:
        self.reporter.message(Level.WARNING, self.order.name, text)

    def _lock(self, domain: Domain, clusters: Clusters, stack: ExitStack) -> None:
        """Take the domain's lock. Raises Skipped if its last backup is younger than MIN_AGE."""
        # beside the saved images: in the pools of excluded ones the lock may not be permitted
        lock = lock_of(select_disks(domain, self.settings), clusters, self.settings.lock_duration)
        self._domain_lock = lock
        # an earlier attempt's worker may have been killed; a retry may be the last
        locked = lock.locked_after_dead if self.order.attempt > 1 else lock.locked
        try:
            stack.enter_context(locked(self.stop, self.reporter, domain.name))
        except LockHeld as error:
            if self.order.min_age and not isinstance(error, (HeldByCleanup, HeldByDead)):
                raise Skipped(error.message) from error
            raise
        if not self.order.min_age or self.order.attempt > 1:  # what an earlier attempt left may look saved
            return
        self._begin(Phase.PREPARE, self._output_limit)
        youngest = datetime.now(timezone.utc) - timedelta(seconds=self.order.min_age)
        saved = self.order.last_saved
        if not saved or saved <= youngest:  # another node may have saved it since the list was made
            saved = self.output.last_saved(domain.uuid, self.check_stop)
        if saved and saved > youngest:
            raise Skipped(f"saved already at {saved:%Y-%m-%d %H:%M:%S} UTC (MIN_AGE)")
