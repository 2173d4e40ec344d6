"""The output rbd: a snapshot of each disk in a second pool, namespace or cluster.

What is in the repository, and what makes a restore point count, is in rbd_repository/.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Callable, Optional

from backup.ceph.repository_pool import RepositoryAddress, RepositoryPool, repository_pool
from backup.errors import BackupError
from backup.model import Level, ParentSnapshot
from backup.protocols import Job, SnapshotSource, Source
from backup.restore_point import manifest
from backup.settings import Settings
from backup.stored import Packed, PointId, RestorePoint, SavedDomain, SavedImage, StoredPoint
from backup.system.concurrency_limit import Slots

from .own_points.entry import entry_of
from .own_points.newest import newest
from .own_points.once import Once
from .own_points.order import last_saved
from .own_points.piece_source import PieceSource
from .own_points.run_names import point_name
from .rbd_repository.definition import OBJECT_SIZE, read_definition, write_definition
from .rbd_repository.listing import points_of, restore_points
from .rbd_repository.names import POINT, definition_name, disk_name, split_id, uuid_of
from .rbd_repository.opened_point import OpenedPoint
from .rbd_repository.removal import discard, withdraw
from .rbd_repository.saved_disk import DiskSaver
from .streams import Streams


@dataclass(frozen=True)
class Rbd:
    """Saves the changes since the base snapshots into images. Satisfies backup.protocols.Output.

    `streams`: images that are saved at the same time, by all workers of the node. `full_read_days`: the days
    between full reads, 0 for no further ones. `fast_diff`: trust the images' object maps.
    """

    address: RepositoryAddress
    runtime_dir: str
    streams: int = 1
    full_read_days: int = 0
    fast_diff: bool = False

    keeps_base_snapshots = True
    prunes = True

    @classmethod
    def from_settings(cls, settings: Settings) -> Rbd:
        pool, _, namespace = settings.rbd_output_pool.partition("/")
        address = RepositoryAddress(
            conf_file=settings.rbd_output_conf or settings.ceph_conf,
            user=settings.rbd_output_user or settings.ceph_user,
            pool=pool,
            namespace=namespace,
            timeout=settings.ceph_timeout,
            stall_timeout=settings.ceph_stall_timeout,
            write_rate=settings.max_write_rate,
        )
        return cls(
            address, settings.runtime_dir, settings.stream_count, settings.full_read_days, settings.fast_diff
        )

    def configuration_errors(self) -> Sequence[BackupError]:
        if not self.address.pool:
            hint = 'name the pool, or "pool/namespace", for the backups'
            return [BackupError("RBD_OUTPUT_POOL is not set", hint)]
        if "/" in self.address.namespace:
            return [BackupError(f"RBD_OUTPUT_POOL = {str(self.address)!r}", "use POOL or POOL/NAMESPACE")]
        return ()

    def problems(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[BackupError]:
        try:
            with self._pool(check_stop) as pool:
                pool.require_usable()
        except BackupError as error:
            check_stop()
            return [error]
        return ()

    def advice(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[str]:
        return ()

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        """Save the disks at the same time, then the manifest: with its snapshot the restore point counts."""
        uuid, snapshot = point.domain.uuid, point_name(_id(point))
        stored = partial(disk_name, uuid)

        def report(level: Level, text: str) -> None:
            job.reporter.message(level, point.domain.name, text)

        with self._pool(job.check_stop, report) as pool:
            pool.create(definition_name(uuid), 0, OBJECT_SIZE)
            with pool.opened(definition_name(uuid)) as definition:
                for last in definition.snapshots()[-1:]:
                    definition.protect_snapshot(last)  # a run may have been killed just after it made it
                definition.note(POINT + snapshot, entry_of(point, sources, stored).packed())
                saver = DiskSaver(
                    pool,
                    point,
                    Once(partial(_newest, pool, uuid, None, job.check_stop, partial(report, Level.WARNING))),
                    timedelta(days=self.full_read_days),
                    self.fast_diff,
                )
                streams = Streams(Slots(self.runtime_dir, "stream", self.streams), point.domain.name)
                saved = streams.each(sources, job, saver.save)
                images = tuple(image for image, _ in saved)
                for source, image in zip(sources, images):
                    job.image_saved(source, image)
                packed = manifest.pack(point, images, {image.target: one for image, one in saved})
                write_definition(definition, packed)
                job.require_lock()  # without it another run might be saving the domain
                definition.note(POINT + snapshot, entry_of(point, sources, stored, images).packed())
                definition.make_snapshot(snapshot)
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
        with self._pool(check_stop) as pool:
            return _newest(pool, uuid, runs, check_stop, warn)

    def last_saved(self, uuid: str, check_stop: Callable[[], None] = lambda: None) -> Optional[datetime]:
        with self._pool(check_stop) as pool:
            return last_saved(points_of(pool, uuid, check_stop))

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        with self._pool(check_stop) as pool:
            return restore_points(pool, check_stop)

    def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        with self._pool(check_stop) as pool:
            pool.require_usable()
            return restore_points(pool, check_stop)

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        with self._pool(check_stop) as pool:
            return _manifest(pool, point)

    @contextmanager
    def image(self, image: SavedImage, check_stop: Callable[[], None]) -> Iterator[Source]:
        """Read a snapshot in order, with reads in flight; meanwhile it is not removed."""
        name, snapshot = split_id(image.restore_id)
        with (
            self._pool(check_stop) as pool,
            pool.opened(definition_name(uuid_of(name))),
            pool.reader(name, snapshot) as reader,
            PieceSource(reader, check_stop) as source,
        ):
            yield source

    def parent(self, image: SavedImage) -> ParentSnapshot:
        """Return the snapshot that has a saved image. Satisfies backup.protocols.ClonesImages."""
        name, snapshot = split_id(image.restore_id)
        return ParentSnapshot(self.address.conf_file, self.address.user, self.address.image(name), snapshot)

    @contextmanager
    def opened(self, point: StoredPoint, check_stop: Callable[[], None]) -> Iterator[OpenedPoint]:
        """Open the snapshots of a restore point; meanwhile it is not removed."""
        with ExitStack() as stack:
            pool = stack.enter_context(self._pool(check_stop))
            name = definition_name(point.id.uuid)
            definition = stack.enter_context(pool.opened(name))
            if point.manifest_id not in definition.snapshots():
                message = f"the restore point of {point.domain} from run {point.id.run} was removed"
                raise BackupError(message, "choose another one")
            yield OpenedPoint(pool, point, _manifest(pool, point), stack)

    def holds(self, path: str, check_stop: Callable[[], None] = lambda: None) -> bool:
        """Return False: the repository is no directory."""
        return False

    def discard(
        self,
        points: Collection[PointId],
        wait_if_busy: bool,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Remove the snapshots of incomplete restore points. There are no locks that could be left."""
        self._remove(points, discard, check_stop)

    def withdraw(self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None) -> None:
        """Remove restore points; the disks' images are written anew from the last one that is left."""
        self._remove(points, withdraw, check_stop)

    def _remove(
        self,
        points: Collection[PointId],
        remove: Callable[[RepositoryPool, PointId, Callable[[], None]], None],
        check_stop: Callable[[], None],
    ) -> None:
        if points:
            with self._pool(check_stop) as pool:
                for point in points:
                    remove(pool, point, check_stop)

    def _pool(
        self,
        check_stop: Callable[[], None],
        report: Callable[[Level, str], None] = lambda _level, _text: None,
    ) -> AbstractContextManager[RepositoryPool]:
        return repository_pool(self.address, check_stop, report)


def _newest(
    pool: RepositoryPool,
    uuid: str,
    runs: Optional[Collection[str]],
    check_stop: Callable[[], None],
    warn: Callable[[str], None],
) -> Optional[SavedDomain]:
    return newest(points_of(pool, uuid, check_stop), runs, partial(_manifest, pool), warn)


def _manifest(pool: RepositoryPool, point: StoredPoint) -> Packed:
    with pool.reader(definition_name(point.id.uuid), point.manifest_id) as reader:
        return read_definition(reader)


def _id(point: RestorePoint) -> PointId:
    return PointId(point.run, point.domain.uuid, point.attempt)
