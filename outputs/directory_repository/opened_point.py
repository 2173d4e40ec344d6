"""An open restore point: its files are read at any offset."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Callable, Union

from backup.errors import BackupError
from backup.stored import Packed, SavedImage, StoredPoint

from ..own_points.run_names import point_name
from .domain_directory import DomainDirectory
from .names import split_id
from .opened_image import READERS, Qcow2Reads, RawReads, opened_image


@dataclass(frozen=True)
class OpenedPoint:
    """A restore point that is not removed meanwhile. Satisfies backup.protocols.OpenedPoint.

    `stack` closes what is opened.
    """

    domain: DomainDirectory
    point: StoredPoint
    packed: Packed
    runtime_dir: str
    limit: float
    check_stop: Callable[[], None]
    stack: ExitStack

    def manifest(self) -> Packed:
        return self.packed

    def image(self, image: SavedImage) -> Union[RawReads, Qcow2Reads]:
        path = self.domain.root.joinpath(*split_id(image.restore_id))
        opened = opened_image(path, image, self.runtime_dir, READERS, self.limit, self.check_stop)
        return self.stack.enter_context(opened)

    def check(self) -> None:
        """Raise BackupError if somebody has removed the files, which can still be read."""
        require_there(self.domain, self.point)

    def damage(self) -> str:
        return ""


def require_there(domain: DomainDirectory, point: StoredPoint) -> None:
    """Raise BackupError unless the restore point counts."""
    if not domain.counts(name := point_name(point.id)):
        message = f"the restore point of {point.domain} from run {point.id.run} was removed"
        raise BackupError(message, f"choose another one; {domain.final(name)} is gone")
