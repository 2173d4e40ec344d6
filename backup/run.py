"""A run, from the list of domains to the results of all jobs."""

from __future__ import annotations

import random
import socket
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from .cleanup import let_go_noted
from .errors import BackupError, ConfigError
from .hypervisor import Hypervisor
from .job import JobOrder
from .largest import largest_first
from .model import Domain, JobResult, Level, Output, Reporter, Status
from .node import only_run
from .pool import Pool
from .report import RunResult
from .selection import Choice, choose
from .settings import Settings
from .stop import StopRequest


def new_run_id() -> str:
    """Give an id that sorts by time: UTC, and random letters against two nodes in one second."""
    letters = "".join(random.choices(string.ascii_lowercase, k=4))
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{letters}"


@dataclass(frozen=True)
class Run:
    """One execution of the backup."""

    settings: Settings
    output: Output
    reporter: Reporter
    stop: StopRequest
    run: str = field(default_factory=new_run_id)
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def back_up(self, names: Sequence[str]) -> RunResult:
        """Back up the selected domains.

        Raises AlreadyRunning; ConfigError for names that no domain has; BackupError when nothing could be
        done at all. What happens to single domains is in the result.
        """
        if errors := self.output.configuration_errors():
            raise ConfigError(errors)
        with only_run(self.settings.runtime_dir), Hypervisor(self.settings.libvirt_uri) as hypervisor:
            let_go_noted(hypervisor, self.settings, self.reporter)
            domains = self._ordered(names, hypervisor)
            pool = Pool(self.settings, self.output, self.reporter, self.stop, self._worker_died)
            results = pool.run([JobOrder(self.run, domain.name, domain.uuid) for domain in domains])
            let_go_noted(hypervisor, self.settings, self.reporter)
            if any(result.status is Status.FAILED for result in results):
                self._discard_incomplete()
        return self.result(results)

    def result(self, results: Sequence[JobResult], nothing_done: bool = False) -> RunResult:
        """Give what the run has come to by now."""
        return RunResult(
            run=self.run,
            host=socket.gethostname(),
            started=self.started,
            finished=datetime.now(timezone.utc),
            results=results,
            signal_number=self.stop.signal_number,
            nothing_done=nothing_done,
        )

    def plan(self, names: Sequence[str]) -> Sequence[Choice]:
        """Tell what `back_up` would do."""
        with Hypervisor(self.settings.libvirt_uri) as hypervisor:
            return choose(hypervisor.domains(), self.settings, names)

    def _ordered(self, names: Sequence[str], hypervisor: Hypervisor) -> Sequence[Domain]:
        """Select the domains and put the largest first. Raises what keeps all of them from being saved."""
        choices = choose(hypervisor.domains(), self.settings, names)
        domains = [choice.domain for choice in choices if not choice.skipped]
        for choice in choices:
            if choice.skipped and {choice.domain.name, choice.domain.uuid} & set(names):
                text = f"named, but not backed up: {choice.skipped}"
                self.reporter.message(Level.WARNING, choice.domain.name, text)
        if domains and (problems := self.output.problems()):
            raise problems[0]
        self.stop.check()
        return largest_first(domains, hypervisor, self.settings)

    def _worker_died(self, order: JobOrder) -> None:
        """Let the domain of a worker that was killed go at once; its snapshots wait for the next run."""
        try:
            with Hypervisor(self.settings.libvirt_uri) as hypervisor:
                let_go_noted(hypervisor, self.settings, self.reporter, order.uuid)
        except BackupError as error:
            self.reporter.message(Level.ERROR, order.name, str(error))

    def _discard_incomplete(self) -> None:
        """Remove from the output what failed jobs saved; what can't be removed does not count anyway."""
        try:
            self.output.discard_incomplete(self.run, patient=not self.stop.requested)
        except BackupError as error:
            text = f"images of incomplete restore points (run={self.run}) may still be in the output: {error}"
            self.reporter.message(Level.WARNING, "", text)
