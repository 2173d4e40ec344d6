"""Verification: reads restore points back from the output and compares them with their checksums."""

from __future__ import annotations

import random
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Callable, Optional

from ..ceph.errors import ClusterError
from ..ceph.saved_snapshot import snapshot_of
from ..command import COMMAND
from ..errors import BackupError, ConfigError
from ..job_result import Phase
from ..model import Level
from ..protocols import Output, RunReporter, SnapshotReader
from ..report.domain_record import DomainRecords
from ..restore_point import manifest
from ..restore_point.checksums import Checksums
from ..restore_point.find import find_point, points_of_domains, with_current_ids
from ..settings import Settings
from ..stored import SavedDomain, SavedImage, StoredPoint
from ..system.module_import import failed_imports
from ..system.progress_interval import ProgressInterval
from ..system.stop_request import StopRequest
from ..system.transient import at_most_by_hand, outlasted
from ..text import size_text
from ..transfer.compare import (
    Mismatch,
    compare_with_checksums,
    compare_with_snapshot,
    pieces_from_output,
    require_checksums,
)

if TYPE_CHECKING:
    from ..ceph.cluster import Cluster

STOP_POLL = 0.1  # seconds between two checks for a stop
CEPH_MODULES = ("rados", "rbd")  # without them there is nothing but checksums to compare with

Read = tuple[StoredPoint, "Future[Optional[SavedImage]]"]


@dataclass(frozen=True)
class Verified:
    """The result: how many domains failed, how many images passed, and their bytes."""

    failed: int
    images: int
    size: int


@dataclass(frozen=True)
class Verification:
    """Verifies one restore point of each domain, up to STREAMS images at a time.

    `sample` is the share of all bytes, 0 to 1, to be read at least: whole images, chosen at random.
    """

    settings: Settings
    output: Output
    reporter: RunReporter
    stop: StopRequest
    sample: float = 1.0

    def verify(self, names: Sequence[str], at: str) -> Verified:
        """Verify and report each image. Raises ConfigError, BackupError."""
        if errors := self.output.configuration_errors():
            raise ConfigError(errors)
        listed = partial(self.output.restore_points, self.stop.check)
        points = outlasted(
            listed, at_most_by_hand(self.settings.retry_for), self.reporter, "", self.stop.check
        )
        domains = {point.id.uuid: point.domain for point in points_of_domains(points, names)}
        if not domains:
            hint = f"is the repository the right one? `{COMMAND} restore-points` lists all restore points"
            raise BackupError("there is no restore point to verify", hint)
        failed: set[str] = set()
        images = size = 0
        selected = self._selected(points, domains, at, failed)
        for point, future in self._compared(selected, failed):
            uuid = point.id.uuid
            try:
                image = future.result()
            except BackupError as error:
                if isinstance(error, Mismatch) or not self.stop.requested:  # or the stop caused it
                    self._failed(failed, uuid, point.domain, error)
                continue
            if image:
                images, size = images + 1, size + image.size
                text = f"{image.target} ({image.image}) verified: {size_text(image.size)}"
                self.reporter.message(Level.INFO, point.domain, text)
        if self.sample == 1:  # a sample can prove damage, but not its absence
            self._record_verified((one for one in selected if one.id.uuid not in failed), points)
        return Verified(len(failed), images, size)

    def _record_verified(self, passed: Iterable[StoredPoint], points: Sequence[StoredPoint]) -> None:
        newest = {point.id.uuid: point.id for point in points if point.manifest_id}
        for point in passed:
            if point.id == newest[point.id.uuid]:  # an older one proves nothing of the newest
                self._records.record_verified(point.id.uuid, point.domain)

    def _selected(
        self, points: Sequence[StoredPoint], domains: Mapping[str, str], at: str, failed: set[str]
    ) -> Sequence[StoredPoint]:
        """Return the restore point of each domain that `at` selects, from the listing alone."""
        found = []
        for uuid, name in domains.items():
            try:
                found.append(find_point(points, uuid, at))
            except BackupError as error:
                self._failed(failed, uuid, name, error)
        return found

    def _compared(self, selected: Sequence[StoredPoint], failed: Container[str]) -> Iterator[Read]:
        """Read images back and yield each result as it arrives. Raises the reason to stop.

        The caller adds to `failed` the UUIDs of domains with a failure.
        """
        drawn = _drawn(selected, self.sample)
        for point, targets in drawn:
            sizes = _sizes(point)
            self.reporter.planned(point.id.uuid, point.domain, sum(sizes[one] for one in targets if one))
        left = {point.id.uuid: len(targets) for point, targets in drawn}
        with (
            _Snapshots(self.settings, self.stop, self.reporter) as snapshots,
            ThreadPoolExecutor(self.settings.stream_count, thread_name_prefix="verify") as threads,
        ):
            under_way = {}
            for point, targets in drawn:
                point_manifest = _Manifest(self.output, point, self.stop.check)
                for target in targets:
                    under_way[threads.submit(self._image, point_manifest, target, snapshots)] = point
            for point, future in _completed(under_way):
                yield point, future
                left[point.id.uuid] -= 1
                if not left[point.id.uuid]:
                    self.reporter.ended(point.id.uuid, failed=point.id.uuid in failed)
        self.stop.check()

    def _image(self, point_manifest: _Manifest, target: str, snapshots: _Snapshots) -> Optional[SavedImage]:
        """Verify an image and return it; None if there is none, or if the manifest is unreadable."""
        self.stop.check()
        self.reporter.phase(point_manifest.point.domain, Phase.VERIFY)
        saved = point_manifest.read()
        image = next((one for one in saved.images if one.target == target), None) if saved else None
        if saved and image and image.size:  # an empty image is in the manifest only
            self._verify(saved, image, snapshots)
        return image

    def _verify(self, saved: SavedDomain, image: SavedImage, snapshots: _Snapshots) -> None:
        checksums = Checksums(saved.checksums[image.target])
        interval = ProgressInterval()

        def progress(done: int) -> None:
            if interval.due(done, image.size):
                self.reporter.progress(saved.name, image.target, done, image.size)

        incremental = image.segment_size or image.full_read
        cluster = snapshots.cluster() if incremental else None
        if self._equals_snapshot(saved.name, image, cluster, progress):
            return
        with self.output.image(image, self.stop.check) as source:
            compare_with_checksums(pieces_from_output(source, image.size), image, checksums, progress)

    def _equals_snapshot(
        self, domain: str, image: SavedImage, cluster: Optional[Cluster], progress: Callable[[int], None]
    ) -> bool:
        """Compare with the base snapshot, which also shows changes that an incremental backup missed.

        False if there is none, or none any more: the next backup may remove it meanwhile, and reads of it
        then return zeros. Raises Mismatch.
        """
        try:
            with snapshot_of(image, cluster) as snapshot:
                if snapshot:
                    self._compare(image, snapshot, progress)
                return snapshot is not None
        except ClusterError as error:
            text = f"{image.target}: comparing with checksums, as the snapshot is unreadable: {error.message}"
            self.reporter.message(Level.INFO, domain, text)
        except Mismatch:
            with suppress(ClusterError), snapshot_of(image, cluster) as snapshot:
                if snapshot:
                    raise
        return False

    def _compare(self, image: SavedImage, snapshot: SnapshotReader, progress: Callable[[int], None]) -> None:
        with self.output.image(image, self.stop.check) as source:
            compare_with_snapshot(pieces_from_output(source, image.size), image, snapshot, progress)

    def _failed(self, failed: set[str], uuid: str, name: str, error: BackupError) -> None:
        """Report the failure, and record the domain's first at once: a verification may be interrupted."""
        self.reporter.message(Level.ERROR, name, str(error))
        if uuid not in failed and not isinstance(error, ConfigError):  # ConfigError: none matches --at
            self._records.update(uuid, name, failure=error.message)
        failed.add(uuid)

    @property
    def _records(self) -> DomainRecords:
        return DomainRecords(self.settings.state_dir, self.reporter)


class _Manifest:
    """A restore point's manifest, read by the first task that needs it, freed with the last one."""

    def __init__(self, output: Output, point: StoredPoint, check_stop: Callable[[], None]) -> None:
        self.point = point
        self._output = output
        self._check_stop = check_stop
        self._lock = threading.Lock()
        self._saved: Optional[SavedDomain] = None
        self._failed = False

    def read(self) -> Optional[SavedDomain]:
        """Return the content; None if an earlier call failed to read it, which raised the error."""
        with self._lock:
            if not self._saved and not self._failed:
                self._failed = True  # unless it succeeds
                packed = self._output.manifest(self.point, self._check_stop)
                saved = with_current_ids(manifest.unpack(packed), self.point)
                require_checksums(saved)
                self._saved, self._failed = saved, False
            return self._saved


class _Snapshots:
    """The cluster with the base snapshots; the first use connects to it."""

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
        """Return the cluster, None if it is unreachable, or this node lacks Ceph's modules."""
        with self._lock:
            if not self._tried:
                self._tried = True
                try:
                    self._cluster = self._connected()
                except ClusterError as error:
                    text = f"comparing with checksums, not with base snapshots: {error.message}"
                    self._reporter.message(Level.INFO, "", text)
            return self._cluster

    def _connected(self) -> Cluster:
        if failed := failed_imports(CEPH_MODULES):
            raise ClusterError(str(failed[0]))
        from ..ceph.restore_cluster import restore_cluster

        return self._stack.enter_context(restore_cluster(self._settings, self._stop, self._reporter))


def _completed(under_way: dict[Future[Optional[SavedImage]], StoredPoint]) -> Iterator[Read]:
    """Yield each result as it arrives."""
    pending = set(under_way)
    while pending:
        done, pending = wait(pending, STOP_POLL, FIRST_COMPLETED)
        for future in done:
            yield under_way.pop(future), future


def _sizes(point: StoredPoint) -> Mapping[str, int]:
    """Return the sizes of the images by target; 0 if only the manifest has the size."""
    return {image.target: image.size or 0 for image in point.images}


def _drawn(selected: Sequence[StoredPoint], sample: float) -> Sequence[tuple[StoredPoint, Sequence[str]]]:
    """Choose images at random until they have the share `sample` of all bytes; at least one.

    Returns their targets by restore point, "" for one without images, whose manifest is read.
    """
    if sample == 1:
        return [(point, list(_sizes(point)) or [""]) for point in selected]
    images = [(point, target, size) for point in selected for target, size in _sizes(point).items()]
    wanted = sample * sum(size for _, _, size in images)
    drawn: dict[str, list[str]] = {}
    read = 0
    for point, target, size in random.sample(images, len(images)):
        if drawn and read >= wanted:
            break
        drawn.setdefault(point.id.uuid, []).append(target)
        read += size
    return [(point, drawn[point.id.uuid]) for point in selected if point.id.uuid in drawn]
