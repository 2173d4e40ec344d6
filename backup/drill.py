"""The drill: a domain is restored into a scratch pool, proven, booted where asked, and removed again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from . import manifest
from .checksums import Checksums
from .cluster import Cluster
from .domain_xml import AGENT_CHANNEL
from .errors import BackupError, ConfigError
from .hypervisor import Hypervisor
from .libvirt_errors import HypervisorError
from .model import HeldPoint, Image, Level, SavedDomain, State
from .new_image import NewImage, require_room
from .proof import Proof, Proofs, now, proofs
from .protocols import Output, Reporter
from .restore import Restore
from .restore_order import restore_cluster
from .restore_points import as_held, chosen
from .restored_domain import RestoredDomain
from .settings import Settings
from .stop import StopRequest
from .verify import against_checksums, pieces_read

BOOT_POLL = 1.0  # seconds between two looks at a guest that boots
PROBE_LIMIT = 5  # seconds that its agent gets for an answer


@dataclass(frozen=True)
class Drill:
    """Proves that a domain's newest restore point comes back. `boot`: as a guest that runs, too."""

    settings: Settings
    output: Output
    reporter: Reporter
    stop: StopRequest
    boot: bool = False

    def drill(self, name: str) -> str:
        """Drill the domain of this name or UUID, and give its name.

        "" stands for the domain whose last drill is longest ago. Raises ConfigError, and BackupError if it
        does not come back as it was saved.
        """
        settings = self.settings
        errors = list(self.output.configuration_errors())
        if not settings.drill_pool:
            errors.append(
                BackupError("DRILL_POOL is not set", "name a pool with room for the largest domain")
            )
        if errors:
            raise ConfigError(errors)
        known = Proofs(settings.state_dir, self.reporter)
        points = self.output.restore_points()
        point = chosen(points, name or due(points, proofs(settings.state_dir)), "latest")
        saved = as_held(manifest.unpack(self.output.manifest(point)), point)
        text = f"drill of the restore point of {saved.taken:%Y-%m-%d %H:%M:%S} UTC, run {saved.point.run}"
        self.reporter.message(Level.INFO, saved.name, text)
        try:
            self._prove(saved)
        except BackupError as error:
            if not self.stop.signal_number:
                known.note(point.id.uuid, saved.name, failure=error.message)
            raise
        known.note(point.id.uuid, saved.name, drilled=now(), failure="")
        return saved.name

    def _prove(self, saved: SavedDomain) -> None:
        pool, _, namespace = self.settings.drill_pool.partition("/")
        with ExitStack() as stack:
            cluster = stack.enter_context(restore_cluster(self.settings))
            require_room(cluster, pool, sum(image.data_bytes for image in saved.images))
            wanted = []
            for image in saved.images:  # by names that no two disks have
                place = Image(pool, f"{saved.point.uuid}.{image.target}", namespace)
                wanted.append((image, NewImage(cluster, place, image, False, self.reporter)))
            restore = Restore(saved.name, self.output, self.settings.workers, self.reporter, self.stop)
            stack.enter_context(restore.filled(wanted))
            images = {image.target: target.filling for image, target in wanted}
            for image in saved.images:
                self._verify(saved, images[image.target], image.target, cluster)
            if self.boot:
                self._boot(saved, images, cluster.monitors())

    def _verify(self, saved: SavedDomain, restored: Image, target: str, cluster: Cluster) -> None:
        """Hold what lies in the cluster against what was saved."""
        (image,) = [one for one in saved.images if one.target == target]
        if target not in saved.checksums:
            text = f"{target} can't be verified: an older version saved it, without checksums"
            self.reporter.message(Level.WARNING, saved.name, text)
            return
        checksums = Checksums(bytearray(saved.checksums[target]))
        with cluster.head_reader(restored) as reader:
            against_checksums(pieces_read(reader), image, checksums, lambda _: self.stop.check())
        self.reporter.message(Level.INFO, saved.name, f"{target} verified in {restored.place}")

    def _boot(
        self, saved: SavedDomain, images: Mapping[str, Image], monitors: Sequence[tuple[str, str]]
    ) -> None:
        """Boot it without a network, and wait until its agent answers."""
        settings = self.settings
        with Hypervisor(settings.libvirt_uris[0], settings.libvirt_timeout) as hypervisor:
            name = f"{saved.name}-drill"
            domain = RestoredDomain.of(saved, hypervisor, name, True, False, self.reporter)
            domain.require_free()
            began = time.monotonic()
            with domain.running_once(images, monitors) as xml:
                self._wait_for_agent(domain, AGENT_CHANNEL in xml, began + settings.drill_boot_timeout)
        text = f"booted in {time.monotonic() - began:.0f} s"
        self.reporter.message(Level.INFO, saved.name, text)

    def _wait_for_agent(self, domain: RestoredDomain, has_agent: bool, deadline: float) -> None:
        limit = self.settings.drill_boot_timeout
        while time.monotonic() < deadline:
            self.stop.check()
            found = domain.hypervisor.domain(domain.uuid)
            if found.state is not State.RUNNING:
                message = f"the restored guest did not boot: it is {found.state.value}"
                raise BackupError(message, f"see /var/log/libvirt/qemu/{domain.name}.log")
            if has_agent and found.agent_connected:
                try:
                    domain.hypervisor.probe_agent(found, PROBE_LIMIT)
                except HypervisorError:
                    continue
                return
            time.sleep(BOOT_POLL)
        if has_agent:
            message = f"the agent of the restored guest did not answer within {limit} s"
            raise BackupError(message, "restore it as a copy and look at its console; see DRILL_BOOT_TIMEOUT")
        text = f"it still ran after {limit} s; that it booted nobody could ask, as it has no guest agent"
        self.reporter.message(Level.WARNING, domain.saved.name, text)


def due(points: Sequence[HeldPoint], known: Mapping[str, Proof]) -> str:
    """Give the UUID of the domain whose last drill is longest ago. Raises BackupError if there is none."""
    candidates = {point.id.uuid for point in points if point.manifest_id}
    if not candidates:
        raise BackupError("there is no complete restore point to drill", "see main.py restore-points")
    return min(sorted(candidates), key=lambda uuid: known.get(uuid, Proof()).drilled)
