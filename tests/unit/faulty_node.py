"""A node on paper of which one call to the outside fails, in one of the ways in which calls fail."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple

import libvirt
import pytest

from backup.ceph.cluster import Claim
from backup.ceph.errors import ClusterError
from backup.errors import BackupError
from backup.hypervisor.errors import HypervisorError
from backup.job.domain_job import DomainJob
from backup.job.job_order import JobOrder
from backup.job_result import JobResult
from backup.model import Domain, Image
from backup.protocols import Job, SnapshotSource
from backup.quiesce import freeze, migration_watch, thaw_rounds
from backup.quiesce.thaw_rounds import thaw_guests
from backup.stored import RestorePoint, SavedImage
from backup.system.concurrency_limit import Slots
from backup.system.stop_request import StopRequest
from outputs.streams import Streams

from .paper_hypervisor import PaperHypervisor
from .paper_node import LOCK, PaperNode, PaperOutput
from .samples import LAYOUT, URI, UUID, settings

HYPERVISOR_CALLS = (
    *("domain", "definition", "state", "instance"),
    *("probe_agent", "freeze", "thaw", "pause", "resume"),
)
CLUSTER_CALLS = (
    *("identified", "watchers", "create_snapshot", "remove_snapshot", "snapshot_names"),
    *("lock", "object_exists", "remove_lock"),
)


class Fault(Enum):
    """How a call fails."""

    REFUSED = "refused"  # without effect
    LOST = "lost"  # it has its effect, but the answer gets lost
    KILLED_BEFORE = "killed before"  # the process that makes it
    KILLED_AFTER = "killed after"
    BUG = "bug"  # an unexpected error


class Errors(NamedTuple):
    """What a side of the boundary raises: if it refuses, and if its answer gets lost."""

    refused: BackupError
    lost: BackupError


HYPERVISOR_ERRORS = Errors(
    HypervisorError("refused", code=libvirt.VIR_ERR_OPERATION_INVALID),
    HypervisorError("no answer", code=libvirt.VIR_ERR_RPC),
)
CLUSTER_ERRORS = Errors(
    ClusterError("refused", number=errno.EPERM), ClusterError("no answer", number=errno.ETIMEDOUT)
)
OUTPUT_ERRORS = Errors(BackupError("restic failed"), BackupError("restic failed once it had saved it"))


class Killed(BaseException):
    """Stands for a SIGKILL: from now on no call has an effect, so no cleanup has one."""


class Boundary:
    """Numbers the calls to the outside, and lets one of them fail."""

    def __init__(self, fault: Fault, number: int) -> None:
        self.fault = fault
        self.number = number
        self.count = 0
        self.hit = ""
        self.dead = False
        self._lock = threading.Lock()
        self._inside = threading.local()

    def call(self, name: str, effect: Callable[..., Any], errors: Errors, *arguments: Any) -> Any:
        """Make the call, or have it fail. What it calls itself on the other side does not count."""
        if getattr(self._inside, "now", False):
            return effect(*arguments)
        if self.dead:
            raise Killed
        with self._lock:
            self.count += 1
            faulty = self.count == self.number
        if faulty:
            # a claim of the lock begins with it or ends with it: which one failed makes a difference
            self.hit = " ".join([name, *(one.name for one in arguments if isinstance(one, Claim))])
            self._fail_before(errors.refused)
        self._inside.now = True
        try:
            result = effect(*arguments)
        finally:
            self._inside.now = False
        if faulty:
            self._fail_after(errors.lost)
        return result

    def heal(self) -> None:
        """End all faults: the next process begins."""
        self.dead, self.number = False, 0

    def _fail_before(self, error: BackupError) -> None:
        if self.fault is Fault.REFUSED:
            raise error
        if self.fault is Fault.BUG:
            raise RuntimeError("a bug")
        if self.fault is Fault.KILLED_BEFORE:
            self.dead = True
            raise Killed

    def _fail_after(self, error: BackupError) -> None:
        self.dead = self.fault is Fault.KILLED_AFTER
        raise Killed if self.dead else error


class StepwiseOutput(PaperOutput):
    """Saves image after image, then the manifest, each by a call of its own."""

    def __init__(self, node: FaultyNode) -> None:
        super().__init__(node)
        self.boundary = node.boundary
        self.images: dict[str, set[str]] = {}  # targets by run
        self.complete: list[RestorePoint] = []  # those with a manifest

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        for source in sources:
            store = partial(self._store, point.run, source)
            self.boundary.call(f"save {source.disk.target}", store, OUTPUT_ERRORS)
        self.boundary.call("save manifest", partial(self.complete.append, point), OUTPUT_ERRORS)
        return super().save(point, sources, job)

    def _store(self, run: str, source: SnapshotSource) -> None:
        assert self.node.ours(str(source.image)), "without a snapshot"
        self.images.setdefault(run, set()).add(source.disk.target)


class StreamedOutput(StepwiseOutput):
    """Saves the images at the same time; each one's snapshot is removed when it is saved."""

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        streams = Streams(Slots("/nowhere", "stream", len(sources)), point.domain.name)
        images = streams.each(sources, job, partial(self._save_one, point.run))
        self.boundary.call("save manifest", partial(self.complete.append, point), OUTPUT_ERRORS)
        return tuple(images)

    def _save_one(self, run: str, source: SnapshotSource, job: Job) -> SavedImage:
        store = partial(self._store, run, source)
        self.boundary.call(f"save {source.disk.target}", store, OUTPUT_ERRORS)
        image = SavedImage(source.disk.target, str(source.image), 1, 1, 1, 0.1, "id", LAYOUT)
        job.image_saved(source, image)
        return image


class FaultyNode(PaperNode):
    """A node whose calls all go through a boundary; and what comes after the process that it failed in."""

    def __init__(
        self,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
        boundary: Boundary,
        domain: Domain,
        output: type[StepwiseOutput] = StepwiseOutput,
    ) -> None:
        super().__init__(directory, monkeypatch, domain)
        self.boundary = boundary
        self.states_at_snapshots: dict[
            str, list[str]
        ] = {}  # of the guest, before and after each is made, by run
        monkeypatch.setattr(thaw_rounds, "Hypervisor", self._connect)
        monkeypatch.setattr(freeze, "FIRST_RETRY", 0.001)
        monkeypatch.setattr(migration_watch, "POLL", 3600)  # its calls would be numbered in any order
        self.stepwise = output(self)
        self.output = self.stepwise
        create = self.cluster.create_snapshot

        def create_recorded(image: Image, name: str) -> None:
            seen = self.states_at_snapshots.setdefault(name.split(".")[-1], [])
            seen.append(self._state)
            create(image, name)
            seen.append(self._state)

        self.cluster.create_snapshot = create_recorded  # type: ignore[method-assign]
        self._route(self.hypervisor, HYPERVISOR_CALLS, HYPERVISOR_ERRORS)
        self._route(self.cluster, CLUSTER_CALLS, CLUSTER_ERRORS)

    def attempt(self, run: str) -> JobResult:
        """Do the job of a run, whatever its outcome."""
        order = JobOrder(run, "web", UUID, URI)
        chosen = settings(runtime_dir=str(self.directory), lock_duration=3600)
        return DomainJob(order, chosen, self.output, self.recorder, StopRequest()).run()

    def thaw_guests(self) -> None:
        """Thaw, as main process and watchdog do after the end of a worker."""
        thaw_guests(settings(runtime_dir=str(self.directory)), self.recorder)

    def expire_lock(self) -> None:
        self.cluster.locks.pop(LOCK, None)

    @property
    def left(self) -> list[str]:
        """List our locks and snapshots in the cluster."""
        return [*self.cluster.locks, *(name for image in self.cluster.snapshots for name in self.ours(image))]

    @property
    def _state(self) -> str:
        return "frozen" if self.hypervisor.frozen else "paused" if self.hypervisor.paused else "running"

    def _connect(self, uri: str, timeout: int, _check_stop: object = None) -> PaperHypervisor:
        found = self.boundary.call("connect", super()._connect, HYPERVISOR_ERRORS, uri, timeout)
        assert isinstance(found, PaperHypervisor)
        return found

    def _route(self, target: object, names: Sequence[str], errors: Errors) -> None:
        for name in names:
            setattr(target, name, partial(self.boundary.call, name, getattr(target, name), errors))
