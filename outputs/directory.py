"""The output directory: the disks of each restore point as qcow2 or raw files in a directory.

What is in the directory, and what makes a restore point count, is in directory_repository/.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from backup.errors import BackupError
from backup.model import Level
from backup.protocols import Job, SnapshotSource, Source
from backup.restore_point import manifest
from backup.restore_point.checksums import Checksums
from backup.settings import Settings
from backup.stored import Packed, PointId, RestorePoint, SavedDomain, SavedImage, StoredPoint
from backup.system.concurrency_limit import Slots
from backup.system.time_limit import awaited, begun, never_stop

from .directory_repository.chain import require_complete
from .directory_repository.domain_directory import DomainDirectory
from .directory_repository.errors import MOUNTED, answered, named_errors
from .directory_repository.listing import points_of, read_manifest, restore_points
from .directory_repository.locks import shared
from .directory_repository.names import QCOW2, file_name, split_id
from .directory_repository.nbd_server import INSTALL_HINT
from .directory_repository.new_image import NewImages
from .directory_repository.opened_image import opened_image
from .directory_repository.opened_point import OpenedPoint, require_there
from .directory_repository.removal import discard, withdraw
from .directory_repository.saved_disk import DiskSaver
from .own_points.entry import entry_of
from .own_points.newest import newest
from .own_points.once import Once
from .own_points.order import last_saved
from .own_points.piece_source import PieceSource
from .own_points.run_names import point_name
from .streams import Streams

PROGRAMS = ("qemu-img", "qemu-nbd")
REPORTED = 100  # checks of the lock between two signs of life


@dataclass(frozen=True)
class Directory:
    """Saves each disk into a file, or its changes since the base snapshots. Satisfies protocols.Output.

    `kind` is "qcow2" or "raw". `chain`: how many files at the most build on one that is complete by itself.
    `streams`: images that are saved at the same time, by all workers of the node. `full_read_days`: the days
    between full reads, 0 for no further ones. `fast_diff`: trust the images' object maps. `limit`: seconds
    without progress after which a disk fails; `lock_wait`: seconds to wait while something is removed.
    """

    root: Path
    kind: str
    chain: int
    runtime_dir: str
    streams: int = 1
    full_read_days: int = 0
    fast_diff: bool = False
    limit: float = 1200
    lock_wait: float = 3600

    prunes = True

    @property
    def keeps_base_snapshots(self) -> bool:
        return self.kind == QCOW2 and self.chain > 0  # or nothing builds on an earlier file

    @classmethod
    def from_settings(cls, settings: Settings) -> Directory:
        return cls(
            Path(settings.directory_output),
            settings.directory_format,
            settings.directory_chain,
            settings.runtime_dir,
            settings.stream_count,
            settings.full_read_days,
            settings.fast_diff,
            settings.output_stall_timeout,
            settings.lock_wait,
        )

    def configuration_errors(self) -> Sequence[BackupError]:
        if self.root == Path():
            return [BackupError("DIRECTORY_OUTPUT is not set", "name the directory for the backups")]
        return ()

    def problems(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[BackupError]:
        try:
            self._require_usable(check_stop)
        except BackupError as error:
            check_stop()
            return [error]
        return ()

    def advice(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[str]:
        return ()

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        """Save the disks at the same time, then the manifest; with its final name the directory counts."""
        domain = DomainDirectory(self.root, point.domain.uuid)
        identifier = PointId(point.run, point.domain.uuid, point.attempt)
        name = point_name(identifier)
        domain.create()
        try:
            with shared(domain, self.lock_wait, _waiting(point, job)):
                domain.begin(name)
                domain.write_entry(name, entry_of(point, sources, self._file))
                saved = self._saved(domain, point, name, sources, job)
                images = tuple(image for image, _ in saved)
                for source, image in zip(sources, images):
                    job.image_saved(source, image)
                checksums = {image.target: one for image, one in saved}
                domain.write_manifest(name, manifest.pack(point, images, checksums))
                domain.write_entry(name, entry_of(point, sources, self._file, images))
                for image in images:
                    require_complete(domain.file(*split_id(image.restore_id)[1:]))
                job.require_lock()  # without it another run might be saving the domain
                domain.commit(name)
        except BaseException:
            with suppress(BackupError):  # what is left then is incomplete, and a later run removes it
                discard(self.root, identifier, never_stop)
            raise
        return images

    def base(
        self,
        uuid: str,
        runs: Collection[str],
        known: Sequence[StoredPoint],
        check_stop: Callable[[], None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> Optional[SavedDomain]:
        """Read the manifest of the newest restore point of these runs; a damaged one causes a warning."""
        return _newest(DomainDirectory(self.root, uuid), runs, check_stop, warn)

    def last_saved(self, uuid: str, check_stop: Callable[[], None] = lambda: None) -> Optional[datetime]:
        return last_saved(points_of(DomainDirectory(self.root, uuid), check_stop))

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        return restore_points(self.root, check_stop)

    def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        self._require_usable(check_stop)
        return restore_points(self.root, check_stop)

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        domain = DomainDirectory(self.root, point.id.uuid)
        return answered(self.root, lambda: read_manifest(domain, point_name(point.id)), check_stop)

    @contextmanager
    def image(self, image: SavedImage, check_stop: Callable[[], None]) -> Iterator[Source]:
        """Read a disk in order, with reads in flight; meanwhile it is not removed.

        Also before its restore point is complete: --verify reads it then.
        """
        uuid, point, file = split_id(image.restore_id)
        domain = DomainDirectory(self.root, uuid)
        with shared(domain, self.lock_wait, check_stop):
            path = domain.file(point, file)
            with (
                opened_image(path, image, self.runtime_dir, 1, self.limit, check_stop) as reads,
                PieceSource(reads, check_stop) as source,
            ):
                yield source

    @contextmanager
    def opened(self, point: StoredPoint, check_stop: Callable[[], None]) -> Iterator[OpenedPoint]:
        """Open the files of a restore point; meanwhile it is not removed."""
        domain = DomainDirectory(self.root, point.id.uuid)
        with ExitStack() as stack:
            stack.enter_context(shared(domain, self.lock_wait, check_stop))
            require_there(domain, point)
            packed = self.manifest(point, check_stop)
            yield OpenedPoint(domain, point, packed, self.runtime_dir, self.limit, check_stop, stack)

    def holds(self, path: str, check_stop: Callable[[], None] = lambda: None) -> bool:
        def within() -> bool:
            return self.root.resolve() in (real := Path(path).resolve(), *real.parents)

        return answered(self.root, within, check_stop)

    def discard(
        self,
        points: Collection[PointId],
        wait_if_busy: bool,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Remove what was not completed. A lock ends with its process: none is left."""
        self._remove(points, discard, check_stop)

    def withdraw(self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None) -> None:
        """Remove restore points; those that build on them stay complete."""
        self._remove(points, withdraw, check_stop)

    def _remove(
        self,
        points: Collection[PointId],
        remove: Callable[[Path, PointId, Callable[[], None]], None],
        check_stop: Callable[[], None],
    ) -> None:
        """Remove one after the other; a request to stop is heard even if the file system hangs."""
        for point in points:
            awaited(begun(partial(remove, self.root, point, check_stop)), math.inf, check_stop)

    def _saved(
        self,
        domain: DomainDirectory,
        point: RestorePoint,
        name: str,
        sources: Sequence[SnapshotSource],
        job: Job,
    ) -> Sequence[tuple[SavedImage, Checksums]]:
        def warn(text: str) -> None:
            job.reporter.message(Level.WARNING, point.domain.name, text)

        saver = DiskSaver(
            domain,
            point,
            name,
            NewImages(self.kind, self.runtime_dir, self.limit),
            Once(partial(_newest, domain, None, job.check_stop, warn)),
            timedelta(days=self.full_read_days),
            self.fast_diff,
            self.chain,
        )
        streams = Streams(Slots(self.runtime_dir, "stream", self.streams), point.domain.name)
        return streams.each(sources, job, saver.save)

    def _file(self, target: str) -> str:
        return file_name(target, self.kind)

    def _require_usable(self, check_stop: Callable[[], None]) -> None:
        """Raise BackupError unless files can be written and locked there."""
        missing = [name for name in PROGRAMS if self.kind == QCOW2 and not shutil.which(name)]
        if missing:
            raise BackupError(f"{' and '.join(missing)} not installed", INSTALL_HINT)

        def require() -> None:
            with named_errors("read", self.root):
                self.root.lstat()
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise BackupError(f"cannot write to DIRECTORY_OUTPUT {self.root}", MOUNTED)
            with shared(DomainDirectory(self.root, ""), 0, never_stop):  # are there locks?
                pass

        answered(self.root, require, check_stop)


def _waiting(point: RestorePoint, job: Job) -> Callable[[], None]:
    """Return what is called while a job waits for the lock: it gives a sign of life."""

    calls = itertools.count()

    def alive() -> None:
        job.check_stop()
        if next(calls) % REPORTED == 0:
            job.reporter.message(Level.DEBUG, point.domain.name, "waits while something is removed")

    return alive


def _newest(
    domain: DomainDirectory,
    runs: Optional[Collection[str]],
    check_stop: Callable[[], None],
    warn: Callable[[str], None],
) -> Optional[SavedDomain]:
    def read(point: StoredPoint) -> Packed:
        return read_manifest(domain, point_name(point.id))

    return newest(points_of(domain, check_stop), runs, read, warn)
