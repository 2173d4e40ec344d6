"""The instant drill: boots a restore point in the repository, without restoring it; it compares no data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..errors import BackupError
from ..hypervisor.guest_mounts import Mount
from ..instant.guest import InstantGuest
from ..job_result import Phase
from ..model import Level
from ..mount.shown_point import opened_point
from ..protocols import Output, RunReporter
from ..report.domain_record import INSTANT, DomainRecord, read_records
from ..settings import Settings
from ..stored import SavedDomain, StoredPoint
from ..system.stop_request import StopRequest
from ..text import one_line
from .boot import Boot, Booted, isolated_copy
from .drill import Drill

LISTED = 10  # file systems in a message


@dataclass(frozen=True)
class InstantDrill(Drill):
    """Proves that the guest in a domain's newest restore point boots. Nothing is written to the cluster."""

    kind: ClassVar[str] = INSTANT

    def _configuration_errors(self) -> Iterator[BackupError]:
        return iter(())

    def _failed(self, point: StoredPoint, error: BackupError) -> Mapping[str, str]:
        """What a comparison has found stays, as the next boot that passes would clear this failure."""
        known = self._known(point)
        return {} if known.failure and known.failed_drill != INSTANT else super()._failed(point, error)

    def _settled(self, point: StoredPoint) -> Mapping[str, str]:
        """A boot disproves only a failed boot: what a comparison has found stays."""
        return {"failure": ""} if self._known(point).failed_drill == INSTANT else {}

    def _known(self, point: StoredPoint) -> DomainRecord:
        return read_records(self.settings.state_dir).get(point.id.uuid, DomainRecord())

    def _prove(self, point: StoredPoint) -> None:
        settings, began = self.settings, time.monotonic()
        limit = settings.output_stall_timeout
        with opened_point(self.output, point, limit, self.stop.check) as shown:
            saved = shown.saved
            self.reporter.message(Level.INFO, saved.name, f"instant drill of the {saved.title}")
            for text in saved.lacks:
                self.reporter.message(Level.WARNING, saved.name, text)
            self.reporter.planned(saved.point.uuid, saved.name, 0)
            self.reporter.phase(saved.name, Phase.BOOT)
            with isolated_copy(saved, settings, self.reporter, self.stop) as domain:
                guest = InstantGuest(domain, shown, settings.drill_dir, self.stop.check)
                with guest.running() as running:
                    checks = (running.check, True, running.check_end)
                    booted = Boot(domain, settings.drill_boot_timeout, self.stop, *checks).wait(running.xml)
                    if booted:
                        self._report(saved, booted, time.monotonic() - began)

    def _report(self, saved: SavedDomain, booted: Booted, seconds: float) -> None:
        text = f"booted out of the repository in {seconds:.0f} s; its data were not compared"
        self.reporter.message(Level.INFO, saved.name, text)
        if booted.mounts is None:
            text = "its agent answers, but does not list the file systems"
            self.reporter.message(Level.WARNING, saved.name, text)
            return
        more = f" and {len(booted.mounts) - LISTED} more" if len(booted.mounts) > LISTED else ""
        listed = ", ".join(map(_mount_text, booted.mounts[:LISTED]))
        self.reporter.message(Level.INFO, saved.name, one_line(f"file systems mounted: {listed}{more}"))
        known = {disk for _, _, _, disks in booted.mounts for disk in disks}
        for image in saved.images:
            if known and "." not in image.target and image.target not in known and image.data_bytes:
                text = f"{image.target}: the guest has mounted no file system of it"
                self.reporter.message(Level.INFO, saved.name, text)


def chosen_drill(
    settings: Settings, output: Output, reporter: RunReporter, stop: StopRequest, boot: bool, instant: bool
) -> Drill:
    """Return the drill of these options; without DRILL_POOL a boot is one out of the repository."""
    if boot and not settings.drill_pool:
        text = (
            "DRILL_POOL is not set: the domain boots out of the repository (--instant), no data are compared"
        )
        reporter.message(Level.INFO, "", text)
        instant = True
    kind = InstantDrill if instant else Drill
    return kind(settings, output, reporter, stop, boot)


def _mount_text(mount: Mount) -> str:
    place, _, kind, disks = mount
    return f"{place} ({kind} on {', '.join(disks)})" if disks else f"{place} ({kind})"
