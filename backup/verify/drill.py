"""The drill: restores a domain into a scratch pool, verifies it, boots it if asked, and removes it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial

from ..ceph.abandonable import unless_silent
from ..ceph.cluster import Cluster
from ..ceph.new_image import NewImage, require_room
from ..ceph.restore_cluster import restore_cluster
from ..command import COMMAND
from ..errors import BackupError, ConfigError, DomainGone, DrillFailed, Interrupted
from ..hypervisor.connection import Hypervisor
from ..hypervisor.domain_xml import AGENT_CHANNEL
from ..hypervisor.errors import HypervisorError
from ..job_result import Phase
from ..model import Image, Level, State
from ..protocols import Output, RunReporter
from ..report.domain_record import DomainRecord, DomainRecords, now, read_records
from ..restore.domain import RestoredDomain
from ..restore.images import ImageRestore
from ..restore.written_files import remove_left
from ..restore_point import manifest
from ..restore_point.checksums import Checksums
from ..restore_point.find import find_point, with_current_ids
from ..settings import Settings
from ..stored import SavedDomain, SavedImage, StoredPoint
from ..system.progress_interval import ProgressInterval
from ..system.stop_request import StopRequest
from ..system.transient import outlasted
from ..transfer.compare import compare_with_checksums, pieces_from_image, require_checksums

BOOT_POLL = 1.0  # seconds between two checks of a booting guest
PROBE_LIMIT = 5  # seconds for the agent's answer


@dataclass(frozen=True)
class Drill:
    """Proves that a domain's newest restore point is restorable. `boot`: and that the guest boots."""

    settings: Settings
    output: Output
    reporter: RunReporter
    stop: StopRequest
    boot: bool = False

    def drill(self, name: str) -> str:
        """Drill the domain with this name or UUID, and return its name.

        "" stands for the domain whose last drill is longest ago. Raises ConfigError, BackupError, and
        DrillFailed.
        """
        settings = self.settings
        errors = list(self.output.configuration_errors())
        if not settings.drill_pool:
            errors.append(
                BackupError("DRILL_POOL is not set", "name a pool with room for the largest domain")
            )
        if errors:
            raise ConfigError(errors)
        listed = partial(self.output.restore_points, self.stop.check)
        points = outlasted(listed, self.settings.retry_for, self.reporter, "", self.stop.check)
        point = find_point(points, name or due(points, read_records(settings.state_dir)), "latest")
        record = partial(DomainRecords(settings.state_dir, self.reporter).update, point.id.uuid, point.domain)
        record(tried=now())  # before anything can fail, so that the next drill takes another domain
        try:
            self._restore_and_verify(point)
        except Interrupted:
            raise
        except BackupError as error:
            if error.transient:  # a timeout, a locked repository: nothing is wrong with the restore point
                raise
            if self.stop.signal_number:
                raise Interrupted("interrupted", self.stop.signal_number) from error
            record(failure=error.message)
            raise DrillFailed(error.message, error.hint) from error
        record(drilled=now(), failure="")
        return point.domain

    def _restore_and_verify(self, point: StoredPoint) -> None:
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
        require_room(cluster, pool, sum(image.data_bytes for image in saved.images))
        wanted = [
            (one, NewImage(cluster, places[one.target], one, False, self.reporter, self.stop))
            for one in map(_without_data_pool, saved.images)
        ]
        restore = ImageRestore(saved.name, self.output, self.settings.stream_count, self.reporter, self.stop)
        with restore.staged(wanted):
            self.reporter.phase(saved.name, Phase.VERIFY)
            for image, target in wanted:
                self._verify(saved, image, target.filling, cluster)
            if self.boot:
                images = {image.target: target.filling for image, target in wanted}
                self._boot(saved, images, cluster.monitors())

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
        with Hypervisor(settings.libvirt_uris[0], settings.libvirt_timeout, self.stop.check) as hypervisor:
            name = f"{saved.name}-drill"
            remove_left(settings.state_dir, {hypervisor.uri: hypervisor}.get, self.reporter)
            domain = RestoredDomain.from_saved(
                saved, hypervisor, name, True, False, self.reporter, settings.state_dir
            )
            domain.require_free()
            began = time.monotonic()
            with domain.running_temporarily(images, monitors) as xml:
                try:
                    answered = self._wait_for_agent(
                        domain, AGENT_CHANNEL in xml, began + settings.drill_boot_timeout
                    )
                except DomainGone as error:  # a transient domain: libvirt forgets it when it ends
                    raise _not_booted(domain, "it has ended") from error
        if answered:
            text = f"booted in {time.monotonic() - began:.0f} s"
            self.reporter.message(Level.INFO, saved.name, text)

    def _wait_for_agent(self, domain: RestoredDomain, has_agent: bool, deadline: float) -> bool:
        """Return whether the agent answered; False if there is none. Raises BackupError."""
        limit = self.settings.drill_boot_timeout
        while time.monotonic() < deadline:
            self.stop.check()
            found = domain.hypervisor.domain(domain.uuid, self.stop.check)
            if found.state is not State.RUNNING:
                raise _not_booted(domain, f"it is {found.state.value}")
            if has_agent and found.agent_connected:
                with suppress(HypervisorError):
                    domain.hypervisor.probe_agent(found, PROBE_LIMIT, self.stop.check)
                    return True
            time.sleep(BOOT_POLL)
        if has_agent:
            message = f"the agent of the restored guest did not answer within {limit} s"
            raise BackupError(message, "restore it as a copy and check its console; see DRILL_BOOT_TIMEOUT")
        text = f"still running after {limit} s; boot not confirmed, as the guest has no agent"
        self.reporter.message(Level.WARNING, domain.saved.name, text)
        return False


def _without_data_pool(image: SavedImage) -> SavedImage:
    """Put everything into DRILL_POOL: the image's own data pool is in production use."""
    return replace(image, layout=replace(image.layout, data_pool=""))


def _not_booted(domain: RestoredDomain, what: str) -> BackupError:
    hint = f"see /var/log/libvirt/qemu/{domain.name}.log"
    return BackupError(f"the restored guest did not boot: {what}", hint)


def due(points: Sequence[StoredPoint], known: Mapping[str, DomainRecord]) -> str:
    """Return the UUID of the domain whose last drill, passed or failed, is longest ago.

    Raises BackupError if there is none.
    """
    candidates = {point.id.uuid for point in points if point.manifest_id}
    if not candidates:
        raise BackupError("there is no complete restore point to drill", f"see {COMMAND} restore-points")
    return min(sorted(candidates), key=lambda uuid: known.get(uuid, DomainRecord()).tried)
