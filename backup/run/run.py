"""A run, from the list of domains to the results of all jobs."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from multiprocessing.connection import Connection
from typing import Callable

from ..errors import BackupError, ConfigError
from ..hooks.hooks import Hooks, When, about_run
from ..hooks.job_hooks import run_missed_hooks
from ..hypervisor.connections import Hypervisors
from ..job.failed_points import FailedPoints
from ..job.job_order import JobOrder
from ..job_result import JobResult, Status
from ..model import Domain, Level
from ..protocols import Output, RunReporter
from ..quiesce.thaw_rounds import thaw_guests
from ..report.run_report import RunResult, new_run_id
from ..restore_point.known_points import remember
from ..settings import Settings
from ..stored import PointId, StoredPoint, is_future
from ..system.child_records import begin_to_end_orphans
from ..system.stop_request import StopRequest
from ..system.transient import outlasted
from ..watch.guard import Guard, guarded
from ..watch.node_lock import only_run, prepare_runtime_dir
from ..watch.other_groups import FindSettings, no_others, thaw_other_groups
from ..watch.watchdog import watched
from .confirm import confirmed
from .drafts import remove_all_drafts
from .incomplete_points import discard_of_dead, discard_own, incomplete, report_dead_locks
from .list_domains import list_domains, ordered, skipped_domains
from .prune import prune_saved
from .retry import Retry
from .still_quiesced import still_quiesced
from .worker_pool import Pool

STOP_POLL = 0.2  # seconds between two checks whether the run has to stop
TIDY_LIMIT = 30.0  # seconds for the output to answer at the end of a run after a request to stop
THAW_WAIT = 10.0  # seconds that the run waits for the thaw of a dead worker's guest


@dataclass(frozen=True)
class Run:
    """One execution of the backup. `other_groups` finds the settings of the node's other groups."""

    settings: Settings
    output: Output
    reporter: RunReporter
    stop: StopRequest
    run: str = field(default_factory=new_run_id)
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    other_groups: FindSettings = no_others
    # Of this run and earlier ones: they must not count.
    _failed_points: set[PointId] = field(default_factory=set, init=False)
    _still_quiesced: list[str] = field(default_factory=list, init=False)  # errors at the end

    @property
    def _hooks(self) -> Hooks:
        return Hooks(self.settings, self.run, self.reporter)

    def back_up(self, names: Sequence[str], verify: bool = False) -> RunResult:
        """Back up the selected domains; `verify` each image against its snapshot before that is removed.

        Raises AlreadyRunning; ConfigError for names that no domain has; BackupError if nothing could be done
        at all. The outcomes of single domains are in the result.
        """
        if errors := self.output.configuration_errors():
            raise ConfigError(errors)
        prepare_runtime_dir(self.settings.node_dir)
        with only_run(self.settings.runtime_dir, self.stop.check):
            # no guest stays frozen while a hook runs
            thaw_guests(self.settings, self.reporter, check_stop=self.stop.check)
            thaw_other_groups(self.settings, self.other_groups, self.reporter, self.stop.check)
            self._end_orphans()
            remove_all_drafts(self.settings)
            try:
                self._hooks.run(When.BEFORE_RUN, {}, self.stop.check)
                result = self._backed_up(names, verify)
            except BaseException as error:  # whatever it was, after-run undoes the work of before-run
                if isinstance(error, BackupError):
                    self._thaw_at_the_end()
                self._after_run(replace(self._result(()), nothing_done=True))
                raise
            self._thaw_at_the_end()  # no hook runs meanwhile
            return self._after_run(replace(result, errors=[*result.errors, *self._still_quiesced]))

    def _thaw_at_the_end(self) -> None:
        self._still_quiesced.extend(still_quiesced(self.settings, self.reporter, self.stop))

    def _after_run(self, result: RunResult) -> RunResult:
        """Run the after-run hooks; return the result with their failure, if any."""
        try:
            self._hooks.run(When.AFTER_RUN, about_run(result), self.stop.check_signalled_twice)
        except BackupError as error:
            self.reporter.message(Level.ERROR, "", str(error))
            result = replace(result, errors=[*result.errors, error.message])
        return replace(result, finished=datetime.now(timezone.utc))

    def _backed_up(self, names: Sequence[str], verify: bool) -> RunResult:
        settings = self.settings
        self._failed_points.update(FailedPoints(settings.state_dir).all())
        with (
            ThreadPoolExecutor(1) as beside,
            Hypervisors(settings.libvirt_uris, settings.libvirt_timeout, self.stop.check) as hypervisors,
            ExitStack() as stack,
        ):
            needless = StopRequest()  # requested once the output's answer is not needed any more
            stack.callback(needless.request, BackupError("nothing has to be backed up"))

            def check_stop() -> None:
                self.stop.check()
                needless.check()

            ready = partial(self.output.ready, check_stop)
            # While libvirt answers. Locks of dead restics first, if there are any: restic cannot remove them
            # beside those that other restics of this node take, `key list` for example even with --no-lock.
            unlocked = beside.submit(self.output.discard, (), False, check_stop)
            found = beside.submit(outlasted, ready, settings.retry_for, self.reporter, "", check_stop)
            self._clean_up_after_workers()
            results: Sequence[JobResult] = ()
            not_pruned: Sequence[str] = ()
            with (
                watched(settings, self.reporter) as watchdog,
                guarded(settings, self.reporter, watchdog) as guard,
                self._pool(watchdog.lifeline, guard) as pool,
            ):
                pool.warm_up(1)  # before the answers: hardly any run is without a domain
                choices = list_domains(names, hypervisors, settings, self.reporter)
                sized = ordered(choices, names, hypervisors, settings, self.reporter, self.stop.check)
                pool.warm_up(len(sized))
                if sized:
                    watchdog.wait_until_ready(self.stop.check)
                    points = self._answer(found)  # an output that is not ready fails the run
                    counted = [point for point in points if point.id not in self._failed_points]
                    results = self._all_done(self._orders(sized, counted, bool(names), verify), pool)
            if sized:
                domains = [domain for domain, _ in sized]
                results = self._confirmed(results)
                report_dead_locks(unlocked, self.reporter)
                self._tidy_output(incomplete(points), domains, results, hypervisors)
                if not self.stop.requested:
                    not_pruned = prune_saved(
                        self.run, results, settings, self.output, self.reporter, self.stop.check
                    )
        unreachable = [error.message for error in hypervisors.unreachable]
        not_selected = () if names else skipped_domains(choices)
        return replace(
            self._result(results),
            named=tuple(names),
            errors=[*unreachable, *not_pruned],
            all_listed=not unreachable,
            not_selected=not_selected,
            verified=verify,
        )

    def _answer(self, found: Future[Sequence[StoredPoint]]) -> Sequence[StoredPoint]:
        """Wait for the output to list its restore points. Raises BackupError, and the reason to stop."""
        while not wait([found], STOP_POLL).done:
            self.stop.check()
        self.stop.check()
        points = found.result()
        remember(points, self.settings.state_dir)
        return points

    def _orders(
        self, sized: Sequence[tuple[Domain, int]], points: Sequence[StoredPoint], named: bool, verify: bool
    ) -> Sequence[JobOrder]:
        failed = {point.uuid for point in self._failed_points}  # the output may take it for a backup
        saved = [point for point in points if point.manifest_id and not is_future(point.taken)]
        newest = {point.id.uuid: point.taken for point in saved}
        passes = (
            0 if self.output.keeps_base_snapshots else 1 + verify
        )  # 0: the size of the changes is unknown
        known: dict[str, list[StoredPoint]] = {domain.uuid: [] for domain, _ in sized}
        for point in points if self.output.keeps_base_snapshots else ():
            if point.id.uuid in known:
                known[point.id.uuid].append(point)
        return [
            JobOrder(
                *(self.run, one.name, one.uuid, one.uri),
                min_age=0 if named or one.uuid in failed else self.settings.min_age,
                verify=verify,
                known=tuple(known[one.uuid]),
                size=passes * size,
                last_saved=newest.get(one.uuid),
            )
            for one, size in sized
        ]

    def _pool(self, lifeline: Connection, guard: Guard) -> Pool:
        died = partial(self._worker_died, guard)
        return Pool(self.settings, self.output, self.reporter, self.stop, lifeline, died)

    def _all_done(self, orders: Sequence[JobOrder], pool: Pool) -> Sequence[JobResult]:
        """Do all jobs, and retry those whose error may be transient."""
        results = self._done(orders, pool)
        retry = Retry(self.settings.retry_for, self.reporter, self.stop)
        discard = partial(self._discard_own, wait_if_busy=True)
        return retry.transient_failures(orders, results, partial(self._done, pool=pool), discard)

    def _done(self, orders: Sequence[JobOrder], pool: Pool) -> Sequence[JobResult]:
        """Run the jobs, then thaw guests that killed workers left frozen."""
        results = pool.run(orders)
        attempts = {order.uuid: order.attempt for order in orders}
        self._failed_points.update(
            PointId(self.run, one.uuid, attempts[one.uuid]) for one in results if one.withdraw
        )
        self._clean_up_after_workers()
        return results

    def _clean_up_after_workers(
        self, uuid: str | None = None, seconds: float = 0, alive: Callable[[], None] = lambda: None
    ) -> None:
        """Thaw guests of killed workers, and run the hooks that these missed: of all domains, or of one.

        Guests that cannot be thawed in time are left to the guard and the watchdog. `alive` is called often.
        """

        def check_stop() -> None:
            alive()
            self.stop.check_signalled_twice()

        thaw_guests(self.settings, self.reporter, uuid, seconds, alive)
        run_missed_hooks(self._hooks, uuid, check_stop)

    def nothing_done(self, names: Sequence[str], error: BackupError) -> RunResult:
        """Return the result of a run that this error ended before any job."""
        errors = (error.message, *self._still_quiesced)
        return replace(self._result(()), nothing_done=True, named=tuple(names), errors=errors)

    def _result(self, results: Sequence[JobResult]) -> RunResult:
        """Return the run's result so far."""
        return RunResult(
            run=self.run,
            host=socket.gethostname(),
            started=self.started,
            finished=datetime.now(timezone.utc),
            results=results,
            signal_number=self.stop.signal_number,
            group=self.settings.group,
        )

    def _worker_died(self, guard: Guard, order: JobOrder, pass_on_stop: Callable[[], None]) -> str:
        """Thaw or resume the domain of a killed worker at once; the next run removes its snapshots.

        Meanwhile other workers hear of a request to stop. Returns why we killed it, "" if we did not.
        """
        self._clean_up_after_workers(order.uuid, THAW_WAIT, pass_on_stop)
        self._end_orphans()
        if not guard.overdue(order.uuid):
            return ""
        return f"it did not thaw or resume the guest within {self.settings.freeze_timeout} s (FREEZE_TIMEOUT)"

    def _end_orphans(self) -> None:
        """End the restic processes of dead workers, as a wrapper does not pass on the kernel's signal."""
        begin_to_end_orphans(self.settings.runtime_dir)

    def _confirmed(self, results: Sequence[JobResult]) -> Sequence[JobResult]:
        state_dir, failed, check_stop = self.settings.state_dir, self._failed_points, self._at_the_end()
        return confirmed(results, self.run, self.output, self.reporter, state_dir, failed, check_stop)

    def _discard_own(self, wait_if_busy: bool) -> None:
        failed, check_stop = self._failed_points, self._at_the_end()
        before = set(failed)
        discard_own(self.run, failed, self.output, self.reporter, wait_if_busy, check_stop)
        FailedPoints(self.settings.state_dir).remove(before - failed)

    def _at_the_end(self) -> Callable[[], None]:
        """Return a call that raises the reason to stop, but only TIDY_LIMIT seconds from now."""
        began = time.monotonic()

        def check_stop() -> None:
            if time.monotonic() > began + TIDY_LIMIT:
                self.stop.check()

        return check_stop

    def _tidy_output(
        self,
        points: Sequence[StoredPoint],
        domains: Sequence[Domain],
        results: Sequence[JobResult],
        hypervisors: Hypervisors,
    ) -> None:
        """Remove what failed jobs saved, and incomplete points of interrupted runs of domains now saved."""
        if self._failed_points or any(result.status is Status.FAILED for result in results):
            self._discard_own(wait_if_busy=not self.stop.requested)
        saved = {result.uuid for result in results if result.images}
        if not self.stop.requested:
            again = [domain for domain in domains if domain.uuid in saved]
            discard_of_dead(points, again, hypervisors, self.output, self.settings, self.reporter, self.stop)
