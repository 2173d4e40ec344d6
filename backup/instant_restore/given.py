"""What an instant restore is about, for all of its steps."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..ceph.cluster import Cluster
from ..hypervisor.instant_xml import on_overlays
from ..hypervisor.moving_domain import MovingDomain
from ..instant.guest import PREFIX
from ..instant.record import Record
from ..model import Image, Level
from ..protocols import Output, RunReporter
from ..restore.domain import RestoredDomain
from ..settings import Settings
from ..stored import SavedDomain, StoredPoint
from ..system.stop_request import StopRequest

TOKEN_LENGTH = 12  # characters of a token in the name of a directory


@dataclass(frozen=True)
class Given:
    """The restore point, the domain, its definition with the restored images, and where they are restored to.

    `places` are by target. `must_end` is set while the work must not be abandoned.
    """

    settings: Settings
    output: Output
    reporter: RunReporter
    stop: StopRequest
    cluster: Cluster
    point: StoredPoint
    saved: SavedDomain
    places: Mapping[str, Image]
    domain: RestoredDomain
    xml: str
    force: bool = False
    damaged: bool = False
    must_end: threading.Event = field(default_factory=threading.Event)

    @property
    def moving(self) -> MovingDomain:
        return MovingDomain(self.domain.hypervisor, self.domain.uuid)

    def xml_now(self, record: Record) -> str:
        """Return the definition for as long as some disks are on overlays."""
        exports = {disk.attached: disk.target for disk in record.on_overlays}
        return on_overlays(self.xml, exports, self.socket(record))

    def directory(self, record: Record) -> Path:
        """Return the directory with the socket, by the same name in each process."""
        return Path(self.settings.drill_dir, f"{PREFIX}{record.token[:TOKEN_LENGTH]}")

    def socket(self, record: Record) -> str:
        return str(self.directory(record) / "nbd")

    def report(self, level: Level, text: str) -> None:
        self.reporter.message(level, self.domain.name, text)
