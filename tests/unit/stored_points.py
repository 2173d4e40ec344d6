"""An output with restore points in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Callable

from backup.errors import BackupError, TransientError
from backup.protocols import Source
from backup.restore_point import manifest
from backup.restore_point.checksums import Checksums
from backup.stored import Packed, PointId, SavedImage, StoredImage, StoredPoint
from tests.integration.scratch_image import source_of

from .jobs_on_paper import NoOutput
from .samples import LAYOUT, MIB, RUN, TAKEN, domain, restore_point

CONTENT = b"saved" + bytes(MIB - 5)


@dataclass
class HeldPoints(NoOutput):
    """Holds a restore point of each domain, given by UUID and name, with the same image.

    `given` is what an image is read as, by the name of its domain. Satisfies protocols.Output.
    """

    domains: Mapping[str, str]
    given: Mapping[str, bytes] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)  # names of the domains whose manifests were read
    broken: int = 0  # how many lists fail, with a transient error

    def configuration_errors(self) -> Sequence[BackupError]:
        return ()

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        if self.broken:
            self.broken -= 1
            raise TransientError("connection reset")
        return [
            StoredPoint(PointId(RUN, uuid), name, TAKEN, "offline", "node1", (_image(name),), "manifest")
            for uuid, name in self.domains.items()
        ]

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        check_stop()
        self.read.append(point.domain)
        checksums = Checksums()
        checksums.add(0, CONTENT[:4096])
        image = SavedImage("vda", f"vms/{point.domain}", MIB, 4096, 0, 0.0, point.domain, LAYOUT)
        of = restore_point(domain(point.domain, point.id.uuid))
        return manifest.pack(of, [image], {"vda": checksums})

    def image(self, image: SavedImage, check_stop: Callable[[], None]) -> AbstractContextManager[Source]:
        return self._source(image)

    @contextmanager
    def _source(self, image: SavedImage) -> Iterator[Source]:
        with source_of(self.given.get(image.restore_id, CONTENT)) as source:
            yield source


def _image(domain: str) -> StoredImage:
    return StoredImage("vda", f"vms/{domain}", MIB, domain)
