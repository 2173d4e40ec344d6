"""The drill: restores a domain into a scratch pool, verifies it, boots it if asked, and removes it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import ClassVar, Optional

from ..ceph.abandonable import unless_silent
from ..ceph.cloned_image import ClonedImage, has_parent
from ..ceph.cluster import Cluster
from ..ceph.new_image import NewImage, require_room
from ..ceph.restore_cluster import restore_cluster
from ..command import COMMAND
from ..errors import BackupError, ConfigError, DrillFailed, Interrupted, NotPossibleHere
from ..job_result import Phase
from ..model import Image, Level
from ..protocols import ClonesImages, Output, RunReporter
from ..report.domain_record import RESTORED, DomainRecord, DomainRecords, now, read_records
from ..restore.images import ImageRestore
from ..restore_point import manifest
from ..restore_point.checksums import Checksums
from ..restore_point.find import find_point, with_current_ids
from ..settings import Settings
from ..stored import CLOCK_ERROR, SavedDomain, SavedImage, StoredPoint
from ..system.progress_interval import ProgressInterval
from ..system.stop_request import StopRequest
from ..system.time_limit import any_abandoned
from ..system.transient import at_most_by_hand, outlasted
from ..transfer.compare import compare_with_checksums, pieces_from_image, require_checksums
from .boot import Boot, isolated_copy


@dataclass(frozen=True)
class Drill:
    """Proves that a domain's newest restore point is restorable. `boot`: and that the guest boots."""

    settings: Settings
    output: Output
    reporter: RunReporter
    stop: StopRequest
    boot: bool = False
    kind: ClassVar[str] = RESTORED

    def drill(self, name: str) -> str:
        """Drill the domain with this name or UUID, and return its name.

        "" stands for the domain whose last drill is longest ago. Raises ConfigError, BackupError, and
        DrillFailed.
        """
        settings = self.settings
        if errors := [*self.output.configuration_errors(), *self._configuration_errors()]:
            raise ConfigError(errors)
        listed = partial(self.output.restore_points, self.stop.check)
        points = outlasted(
            listed, at_most_by_hand(self.settings.retry_for), self.reporter, "", self.stop.check
        )
        known = read_records(settings.state_dir)
        point = find_point(points, name or due(points, known), "latest")
        record = partial(DomainRecords(settings.state_dir, self.reporter).update, point.id.uuid, point.domain)
        tried = known.get(point.id.uuid, DomainRecord()).tried
        record(tried=now())  # before anything can fail, so that the next drill takes another domain
        try:
            self._prove(point)
        except BackupError as error:
            if self.stop.signal_number and any_abandoned():  # its images may be left
                record(tried=tried)  # the next drill takes this domain again, and removes them
            # of the transient ones, a timeout, a locked repository: nothing is wrong with the restore point
            may_pass = error.transient and not error.damaged
            if isinstance(error, (Interrupted, NotPossibleHere)) or may_pass:
                raise
            if self.stop.signal_number:
                raise Interrupted("interrupted", self.stop.signal_number) from error
            record(**self._failed(point, error))
            raise DrillFailed(error.message, error.hint) from error
        record(drilled=now(), drill_kind=self.kind, **self._settled(point))
        return point.domain

    def _configuration_errors(self) -> Iterator[BackupError]:
        if not self.settings.drill_pool:
            hint = (
                "name a pool with room for the largest domain, or boot from the repository: drill --instant"
            )
            yield BackupError("DRILL_POOL is not set", hint)

    def _failed(self, point: StoredPoint, error: BackupError) -> Mapping[str, str]:
        """Return what this failure changes in the record."""
        return {"failure": error.message, "failed_drill": self.kind}

    def _settled(self, point: StoredPoint) -> Mapping[str, str]:
        """Return what a drill that has passed changes in the record of an earlier failure."""
        return {"failure": ""}

    def _prove(self, point: StoredPoint) -> None:
        saved = with_current_ids(manifest.unpack(self.output.manifest(point, self.stop.check)), point)
        text = f"drill of the restore point of {saved.taken:%Y-%m-%d %H:%M:%S} UTC, run {saved.point.run}"
        self.reporter.message(Level.INFO, saved.name, text)
        require_checksums(saved)
        size = sum(image.size for image in saved.images)
        self.reporter.planned(saved.point.uuid, saved.name, 2 * size)  # written, then read
        pool, _, namespace = self.settings.drill_pool.partition("/")
        places = {
            image.target: Image(pool, f"{saved.point.uuid}.{image.target}", namespace)
            for image in saved.images
        }
        with restore_cluster(self.settings, self.stop, self.reporter, saved.name) as cluster:
            work = partial(self._into_pool, cluster, saved, places)
            unless_silent(work, cluster, list(places.values()), self.stop, self.reporter)

    def _into_pool(self, cluster: Cluster, saved: SavedDomain, places: Mapping[str, Image]) -> None:
        pool = self.settings.drill_pool.partition("/")[0]
        wanted_images = [_without_data_pool(image) for image in saved.images]
        clones = self._clones(cluster, wanted_images)
        require_room(cluster, pool, 0 if clones else sum(image.data_bytes for image in wanted_images))
        wanted = [(one, self._target(cluster, places[one.target], one, clones)) for one in wanted_images]
        restore = ImageRestore(
            *(saved.name, self.output, self.settings.stream_count, self.reporter, self.stop),
            clones=clones is not None,
        )
        with restore.staged(wanted):
            self.reporter.phase(saved.name, Phase.VERIFY)
            for image, target in wanted:
                self._verify(saved, image, target.filling, cluster)
            if self.boot:
                images = {image.target: target.filling for image, target in wanted}
                self._boot(saved, images, cluster.monitors())

    def _clones(self, cluster: Cluster, images: Sequence[SavedImage]) -> Optional[ClonesImages]:
        """Return the output if its snapshots are in this cluster, so that nothing has to be copied."""
        output, settings = self.output, self.settings
        if not isinstance(output, ClonesImages) or not images:
            return None
        parent = output.parent(images[0])
        return output if has_parent(cluster, parent, settings, self.stop, self.reporter) else None

    def _target(
        self, cluster: Cluster, image: Image, saved: SavedImage, clones: Optional[ClonesImages]
    ) -> NewImage:
        arguments = (cluster, image, saved, False, self.reporter, self.stop)
        return ClonedImage(*arguments, parent=clones.parent(saved)) if clones else NewImage(*arguments)

    def _verify(self, saved: SavedDomain, image: SavedImage, restored: Image, cluster: Cluster) -> None:
        """Compare the restored image with the checksums of the saved one."""
        interval = ProgressInterval()

        def progress(done: int) -> None:
            self.stop.check()
            if interval.due(done, image.size):
                self.reporter.progress(saved.name, image.target, done, image.size)

        checksums = Checksums(saved.checksums[image.target])
        with cluster.head_reader(restored) as reader, closing(pieces_from_image(reader)) as pieces:
            compare_with_checksums(pieces, image, checksums, progress)
        self.reporter.message(Level.INFO, saved.name, f"{image.target} verified in {restored.place}")

    def _boot(
        self, saved: SavedDomain, images: Mapping[str, Image], monitors: Sequence[tuple[str, str]]
    ) -> None:
        """Boot the domain without a network and wait until its agent answers."""
        settings = self.settings
        self.reporter.phase(saved.name, Phase.BOOT)
        with isolated_copy(saved, settings, self.reporter, self.stop) as domain:
            domain.require_free()
            xml = domain.isolated_xml(images, monitors)
            began = time.monotonic()
            with domain.running_temporarily(xml):
                booted = Boot(domain, settings.drill_boot_timeout, self.stop).wait(xml)
        if booted:
            text = f"booted in {time.monotonic() - began:.0f} s"
            self.reporter.message(Level.INFO, saved.name, text)


def _without_data_pool(image: SavedImage) -> SavedImage:
    """Put everything into DRILL_POOL: the image's own data pool is in production use."""
    return replace(image, layout=replace(image.layout, data_pool=""))


def due(points: Sequence[StoredPoint], known: Mapping[str, DomainRecord]) -> str:
    """Return the UUID of the domain whose last drill, passed or failed, is longest ago.

    Raises BackupError if there is none.
    """
    candidates = {point.id.uuid for point in points if point.manifest_id}
    if not candidates:
        raise BackupError("there is no complete restore point to drill", f"see {COMMAND} restore-points")
    latest = (datetime.now(timezone.utc) + CLOCK_ERROR).isoformat()

    def tried(uuid: str) -> str:
        last = known.get(uuid, DomainRecord()).tried
        return last if last < latest else ""  # of the future: a clock was wrong, and it would never be due

    return min(sorted(candidates), key=tried)
