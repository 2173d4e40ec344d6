"""The verification of restore points: read back from the output, and held against their checksums."""

from __future__ import annotations

import random
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Callable, Optional

from .. import PROGRAM
from ..ceph.cluster import Cluster
from ..ceph.errors import ClusterError
from ..ceph.saved_snapshot import snapshot_of
from ..errors import BackupError, ConfigError
from ..job_result import Phase
from ..model import Level
from ..protocols import Output, RunReporter
from ..report.domain_record import Proofs
from ..restore.restorer import restore_cluster
from ..restore_point import manifest
from ..restore_point.checksums import Checksums
from ..restore_point.find import as_held, chosen, of_domains
from ..settings import Settings
from ..stored import SavedDomain, SavedImage, StoredPoint
from ..system.progress_interval import ProgressInterval
from ..system.stop_request import StopRequest
from ..text import size_text
from ..transfer.compare import Mismatch, against_checksums, against_snapshot, pieces_of, require_checksums

STOP_POLL = 0.1  # seconds between two looks at whether to stop

Read = tuple[StoredPoint, "Future[Optional[SavedImage]]"]


@dataclass(frozen=True)
class Verified:
    """How many domains failed, and how many images, and bytes in them, are as they were saved."""

    failed: int
    images: int
    size: int


@dataclass(frozen=True)
class Verification:
    """Verifies one restore point of each domain, images up to WORKERS at a time.

    `sample` is the part of all bytes, 0 to 1, that is read at the least: whole images, drawn by chance.
    """

    settings: Settings
    output: Output
    reporter: RunReporter
    stop: StopRequest
    sample: float = 1.0

    def verify(self, names: Sequence[str], at: str) -> Verified:
        """Verify, and tell how it went. Raises ConfigError, BackupError."""
        if errors := self.output.configuration_errors():
            raise ConfigError(errors)
        points = self.output.restore_points(self.stop.check)
        of = {point.id.uuid: point.domain for point in of_domains(points, names)}
        if not of:
            hint = f"is RESTIC_REPOSITORY the one that backups go to? see {PROGRAM} restore-points"
            raise BackupError("there is no restore point to verify", hint)
        failed: set[str] = set()
        images = size = 0
        held = self._chosen(points, of, at, failed)
        for point, future in self._compared(held, failed):
            uuid = point.id.uuid
            try:
                image = future.result()
            except BackupError as error:
                if isinstance(error, Mismatch) or not self.stop.requested:  # or it is the stop's doing
                    self._failed(failed, uuid, point.domain, error)
                continue
            if image:
                images, size = images + 1, size + image.size
                text = f"{image.target} ({image.image}) verified: {size_text(image.size)}"
                self.reporter.message(Level.INFO, point.domain, text)
        if self.sample == 1:  # a part of it proves damage, but not that there is none
            self._prove(point for point in held if point.id.uuid not in failed)
        return Verified(len(failed), images, size)

    def _prove(self, verified: Iterable[StoredPoint]) -> None:
        for point in verified:
            self._proofs.note_verified(point.id.uuid, point.domain)

    def _chosen(
        self, points: Sequence[StoredPoint], of: Mapping[str, str], at: str, failed: set[str]
    ) -> Sequence[StoredPoint]:
        """Give the restore point of each domain that is meant, by the listing alone."""
        found = []
        for uuid, name in of.items():
            try:
                found.append(chosen(points, uuid, at))
            except BackupError as error:
                self._failed(failed, uuid, name, error)
        return found

    def _compared(self, held: Sequence[StoredPoint], failed: Container[str]) -> Iterator[Read]:
        """Read images back, and yield each as soon as that has ended. Raises the reason to stop.

        `failed` then has those whose images are not as they were saved.
        """
        drawn = _drawn(held, self.sample)
        for point, targets in drawn:
            sizes = _sizes(point)
            self.reporter.planned(point.id.uuid, point.domain, sum(sizes[one] for one in targets if one))
        left = {point.id.uuid: len(targets) for point, targets in drawn}
        with (
            _Snapshots(self.settings, self.stop, self.reporter) as snapshots,
            ThreadPoolExecutor(self.settings.workers, thread_name_prefix="verify") as threads,
        ):
            under_way = {}
            for point, targets in drawn:
                manifest_of = _Manifest(self.output, point, self.stop.check)
                for target in targets:
                    under_way[threads.submit(self._image, manifest_of, target, snapshots)] = point
            pending = set(under_way)
            while pending:
                done, pending = wait(pending, STOP_POLL, FIRST_COMPLETED)
                for future in done:
                    point = under_way.pop(future)
                    yield point, future
                    left[point.id.uuid] -= 1
                    if not left[point.id.uuid]:
                        self.reporter.ended(point.id.uuid, failed=point.id.uuid in failed)
        self.stop.check()

    def _image(self, of: _Manifest, target: str, snapshots: _Snapshots) -> Optional[SavedImage]:
        """Verify an image, and give it; None if there is none, or the domain has failed with another."""
        self.stop.check()
        self.reporter.phase(of.point.domain, Phase.VERIFY)
        saved = of.read()
        image = next((one for one in saved.images if one.target == target), None) if saved else None
        if saved and image and image.size:  # or it is in the manifest alone
            self._verify(saved, image, snapshots)
        return image

    def _verify(self, saved: SavedDomain, image: SavedImage, snapshots: _Snapshots) -> None:
        checksums = Checksums(bytearray(saved.checksums[image.target]))
        throttle = ProgressInterval()

        def progress(done: int) -> None:
            if throttle.due(done, image.size):
                self.reporter.progress(saved.name, image.target, done, image.size)

        cluster = snapshots.cluster() if image.segment_size else None
        if self._is_as_its_snapshot(saved.name, image, cluster, progress):
            return
        with self.output.image(image, self.stop.check) as source:
            against_checksums(pieces_of(source, image.size), image, checksums, progress)

    def _is_as_its_snapshot(
        self, domain: str, image: SavedImage, cluster: Optional[Cluster], progress: Callable[[int], None]
    ) -> bool:
        """Compare with the snapshot, which shows too what a backup of changes alone has missed.

        False where there is none, or none any more: the next backup may remove it meanwhile, and what is read
        of it then is zeros. Raises Mismatch.
        """
        try:
            with snapshot_of(image, cluster) as snapshot:
                if snapshot:
                    with self.output.image(image, self.stop.check) as source:
                        against_snapshot(pieces_of(source, image.size), image, snapshot, progress)
                return snapshot is not None
        except ClusterError as error:
            text = (
                f"{image.target} is compared with checksums, its snapshot could not be read: {error.message}"
            )
            self.reporter.message(Level.INFO, domain, text)
        except Mismatch:
            with suppress(ClusterError), snapshot_of(image, cluster) as snapshot:
                if snapshot:
                    raise
        return False

    def _failed(self, failed: set[str], uuid: str, name: str, error: BackupError) -> None:
        """Tell it, and note the domain's first failure at once: a long verification may be interrupted."""
        self.reporter.message(Level.ERROR, name, str(error))
        if uuid not in failed and not isinstance(error, ConfigError):  # a --at that fits none proves nothing
            self._proofs.note(uuid, name, failure=error.message)
        failed.add(uuid)

    @property
    def _proofs(self) -> Proofs:
        return Proofs(self.settings.state_dir, self.reporter)


class _Manifest:
    """A restore point's manifest, read by the first task that needs it; forgotten with the last one."""

    def __init__(self, output: Output, point: StoredPoint, check_stop: Callable[[], None]) -> None:
        self.point = point
        self._output = output
        self._check_stop = check_stop
        self._lock = threading.Lock()
        self._saved: Optional[SavedDomain] = None
        self._failed = False

    def read(self) -> Optional[SavedDomain]:
        """Give what it says; None if it could not be read, which is raised once."""
        with self._lock:
            if not self._saved and not self._failed:
                self._failed = True  # unless it succeeds
                packed = self._output.manifest(self.point, self._check_stop)
                saved = as_held(manifest.unpack(packed), self.point)
                require_checksums(saved)
                self._saved, self._failed = saved, False
            return self._saved


class _Snapshots:
    """The cluster with the snapshots that images were saved from; reached when the first is looked for."""

    def __init__(self, settings: Settings, stop: StopRequest, reporter: RunReporter) -> None:
        self._settings = settings
        self._stop = stop
        self._reporter = reporter
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._tried = False
        self._cluster: Optional[Cluster] = None

    def __enter__(self) -> _Snapshots:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cluster(self) -> Optional[Cluster]:
        """Give it, or None where it is out of reach."""
        with self._lock:
            if not self._tried:
                self._tried = True
                try:
                    self._cluster = self._stack.enter_context(
                        restore_cluster(self._settings, self._stop, self._reporter)
                    )
                except ClusterError as error:
                    text = f"base snapshots can't be compared, but checksums: {error.message}"
                    self._reporter.message(Level.INFO, "", text)
            return self._cluster


def _sizes(point: StoredPoint) -> Mapping[str, int]:
    """Give the sizes of a restore point's images by their targets; 0 where only the manifest has them."""
    return {image.target: image.size or 0 for image in point.images}


def _drawn(held: Sequence[StoredPoint], sample: float) -> Sequence[tuple[StoredPoint, Sequence[str]]]:
    """Draw images until they hold the part of all bytes that is wanted; at least one.

    Gives their targets by restore point, "" for one without any, of which the manifest can be read.
    """
    if sample == 1:
        return [(point, list(_sizes(point)) or [""]) for point in held]
    images = [(point, target, size) for point in held for target, size in _sizes(point).items()]
    wanted = sample * sum(size for _, _, size in images)
    drawn: dict[str, list[str]] = {}
    read = 0
    for point, target, size in random.sample(images, len(images)):
        if drawn and read >= wanted:
            break
        drawn.setdefault(point.id.uuid, []).append(target)
        read += size
    return [(point, drawn[point.id.uuid]) for point in held if point.id.uuid in drawn]
