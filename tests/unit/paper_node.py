"""A node on paper, with everything that a job needs: libvirts, a cluster, an output."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from backup.hypervisor import connections
from backup.hypervisor.errors import HypervisorError
from backup.job import domain_job
from backup.job.domain_job import DomainJob
from backup.job.job_order import JobOrder
from backup.job_result import JobResult
from backup.model import Domain
from backup.protocols import Job, SnapshotSource
from backup.quiesce.freeze_notes import FreezeNotes
from backup.stored import RestorePoint, SavedImage, StoredPoint
from backup.system.stop_request import StopRequest

from .jobs_on_paper import NoOutput
from .paper_cluster import PaperCluster, PaperClusters
from .paper_hypervisor import PaperHypervisor
from .recorder import Recorder
from .samples import LAYOUT, OTHER_URI, RUN, URI, UUID, settings

LOCK = f"virt-rbd-backup.lock.{UUID}"


class PaperOutput(NoOutput):
    """Stores restore points, and checks that the domain runs while it saves them."""

    def __init__(self, node: PaperNode) -> None:
        self.node = node
        self.points: list[RestorePoint] = []
        self.saved: dict[str, str] = {}  # images by their disks' targets
        self.age: float | None = None  # seconds since the domain was last saved
        self.asked_for: list[str] = []

    def last_saved(self, uuid: str, check_stop: Callable[[], None] = lambda: None) -> Optional[datetime]:
        self.asked_for.append(uuid)
        assert LOCK in self.node.cluster.locks, "another node could save it meanwhile"
        return None if self.age is None else datetime.now(timezone.utc) - timedelta(seconds=self.age)

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        assert all(hypervisor.moves for hypervisor in self.node.hypervisors.values())
        for source in sources:
            assert self.node.ours(str(source.image)), "without a snapshot"
        self.points.append(point)
        self.saved = {source.disk.target: str(source.image) for source in sources}
        return tuple(
            SavedImage(target, image, 1, 1, 1, 0.1, "id", LAYOUT) for target, image in self.saved.items()
        )


class PaperNode:
    """A node whose libvirts know the given domains, by their URIs."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, *domains: Domain) -> None:
        self.directory = directory
        self.notes = FreezeNotes(str(directory))
        self.hypervisors = {one.uri: PaperHypervisor(one, self.notes) for one in domains}
        self.connected: list[str] = []
        self.cluster = PaperCluster()
        self.cluster.snapshots = {
            str(disk.image): {"foreign"} for one in domains for disk in one.disks if disk.image
        }
        running = [one for one in domains if one.state.active]
        self.cluster.watching = {
            str(disk.image): 1 for one in running for disk in one.disks if disk.image and disk.client
        }
        self.output = PaperOutput(self)
        self.recorder = Recorder()
        self.stop = StopRequest()
        self.saved: list[JobResult] = []  # as soon as their restore points were complete
        monkeypatch.setattr(connections, "Hypervisor", self._connect)
        monkeypatch.setattr(domain_job, "Clusters", lambda *_: PaperClusters(self.cluster))

    @property
    def hypervisor(self) -> PaperHypervisor:
        return self.hypervisors[URI]

    def back_up(
        self,
        min_age: int = 0,
        uri: str = URI,
        known: Sequence[StoredPoint] = (),
        full_read: bool = False,
        attempt: int = 1,
        last_saved: Optional[datetime] = None,
        **constants: Any,
    ) -> JobResult:
        """Do the job of web, as `uri` listed it; assert that it leaves nothing behind."""
        order = JobOrder(
            RUN,
            "web",
            UUID,
            uri,
            min_age,
            known=known,
            attempt=attempt,
            full_read=full_read,
            last_saved=last_saved,
        )
        uris = {"libvirt_uri": [URI, OTHER_URI], "runtime_dir": str(self.directory)}
        locks_before = set(self.cluster.locks)
        result = DomainJob(
            order, settings(**{**uris, **constants}), self.output, self.recorder, self.stop, self._on_saved
        ).run()
        assert set(self.cluster.locks) == locks_before
        assert self.notes.all() == []
        assert all(hypervisor.moves for hypervisor in self.hypervisors.values())
        return result

    def _on_saved(self, result: JobResult) -> None:
        assert self.output.points
        assert LOCK in self.cluster.locks, "it only tidies up from now on, and that comes later"
        self.saved.append(result)

    def ours(self, image: str) -> set[str]:
        return self.cluster.snapshots[image] - {"foreign"}

    def assert_untouched(self) -> None:
        """Assert that neither the guest nor the cluster was touched."""
        assert all(hypervisor.asked == [] for hypervisor in self.hypervisors.values())
        assert (self.cluster.claims, self.output.points) == ([], [])

    def _connect(self, uri: str, _timeout: int, _check_stop: object = None) -> PaperHypervisor:
        self.connected.append(uri)
        if uri not in self.hypervisors:
            raise HypervisorError(f"cannot connect to libvirt at {uri}: no route to host")
        return self.hypervisors[uri]
