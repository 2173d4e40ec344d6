"""Saves one disk into its image of the repository, and makes the snapshot that is its part of the point."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Callable, Optional

from backup.ceph.errors import ImageGone
from backup.ceph.repository_image import RepositoryImage
from backup.ceph.repository_pool import RepositoryPool
from backup.errors import BackupError, TransientError
from backup.model import Level
from backup.protocols import Job, SnapshotReader, SnapshotSource
from backup.restore_point.checksums import Checksums
from backup.stored import Base, Packed, PointId, RestorePoint, SavedDomain, SavedImage
from backup.text import size_text

from ..own_points.changed_parts import PIECE, ChangedParts
from ..own_points.damaged_pieces import added, damaged_pieces
from ..own_points.plan import changed_parts, full_read_due, tail, wrong_list
from ..own_points.run_names import point_id, point_name
from ..own_points.written_pieces import PieceWriter, write_all, write_changed
from .names import WRITING, disk_name, restore_id, split_id

# Ceph forgets a client that died after 30 seconds (osd_client_watch_timeout).
USERS_LIMIT = 40.0  # seconds to wait until nobody else has the image open
USERS_POLL = 1.0

NOTHING = Checksums()


@dataclass(frozen=True)
class DiskSaver:
    """Saves the disks of one restore point.

    `newest` returns the newest one that is complete, if there is any. `full_read_interval`: the time after
    which a full read is due, 0 for never. `fast_diff`: trust the images' object maps.
    """

    pool: RepositoryPool
    point: RestorePoint
    newest: Callable[[], Optional[SavedDomain]]
    full_read_interval: timedelta
    fast_diff: bool

    def save(self, source: SnapshotSource, job: Job) -> tuple[SavedImage, Checksums]:
        """Save a disk; the repository then has its snapshot. Raises BackupError."""
        began, target = time.monotonic(), source.disk.target
        name = disk_name(self.point.domain.uuid, target)
        snapshot = point_name(_id(self.point))
        with ExitStack() as reading, ExitStack() as writing:
            reader = reading.enter_context(source.open())
            self.pool.create(name, reader.size, reader.layout.object_size)
            with _transient_if_gone():
                image = writing.enter_context(self.pool.opened(name))
                copy = _Copy(self, source, reader, image, name, job)
                copy.prepare()
            image.note(WRITING, snapshot)  # before anything is written
            image.resize(reader.size)
            checksums = copy.write()
            image.flush()
            reading.close()  # raises if the source's snapshot was removed while it was read
            job.check_stop()
            image.make_snapshot(snapshot)
            image.remove_note(WRITING)
        saved = copy.saved(checksums, restore_id(name, snapshot), time.monotonic() - began)
        job.reporter.message(Level.INFO, self.point.domain.name, copy.summary(saved))
        return saved, checksums


@dataclass
class _Before:
    """What the image of the repository is known to be: a snapshot of it, and the checksums of that."""

    snapshot: str
    size: int
    checksums: Packed


class _Copy:
    """One disk on its way."""

    def __init__(
        self,
        saver: DiskSaver,
        source: SnapshotSource,
        reader: SnapshotReader,
        image: RepositoryImage,
        name: str,
        job: Job,
    ) -> None:
        self._saver = saver
        self._source = source
        self._reader = reader
        self._image = image
        self._name = name
        self._job = job
        self._title = f"{source.disk.target} ({source.image})"
        self._full_read = saver.point.taken.isoformat()
        self._parts: Optional[ChangedParts] = None  # None: all is read
        self._unknown = ChangedParts(reader.size)  # pieces of the image that may be anything
        self._before: Optional[_Before] = None
        self._writer = PieceWriter(image, fresh=False)

    def prepare(self) -> None:
        """Find out what has to be written. Nothing is written yet. Raises BackupError."""
        self._require_alone()
        ours = [one for one in self._image.snapshots() if point_id("", one)]
        last = ours[-1] if ours else ""
        if ours:
            self._image.protect_snapshot(last)  # a run may have been killed just after it made it
        torn = WRITING in self._image.notes()
        if not torn:
            self._require_unchanged(last)
        fresh = not last and not torn  # created just now, or just before a run was killed
        base = self._source.base
        if not fresh:
            self._before = self._known(ours)
            since = self._before.snapshot if self._before else ""
            if torn or since != last:
                self._unknown.add_pieces(self._saver.pool.changes(self._name, since, exact=True))
            if self._before and self._image.size != self._before.size:
                self._unknown.add_pieces([tail(min(self._image.size, self._before.size), self._reader.size)])
        self._writer = PieceWriter(self._image, fresh)
        why = self._full_read_reason(ours)
        if not why and base:
            why = self._plan(base)
        if why:
            self._parts = None
            self._log(Level.INFO, f"{self._title}: full read, {why}")

    def write(self) -> Checksums:
        """Write what differs, and return the checksums of all. Raises BackupError."""
        before = Checksums(self._before.checksums) if self._before else NOTHING
        if self._parts is None:
            self._find_damage(before)
            return write_all(self._reader, self._writer, before, self._unknown, self._progress)
        base = self._source.base
        assert base
        self._full_read = base.saved.full_read
        for number in self._unknown:
            self._parts.add(self._parts.piece(number))
        return write_changed(self._reader, self._writer, self._parts, before, self._progress)

    def _find_damage(self, before: Checksums) -> None:
        """Have pieces of the image written anew that are not what was saved. Raises BackupError."""
        if not self._before:
            return
        image = self._saver.pool.image(self._name)
        with self._saver.pool.cluster.head_reader(image) as head:
            damaged = damaged_pieces(head, head.extents(), before, self._unknown, self._progress)
            places = added(damaged, self._unknown)
        if places:
            text = f"{image} differs from what was saved: {places}; they are written anew"
            hint = "verify the restore points before this one, see ceph health detail"
            self._log(Level.ERROR, f"{self._title}: {text} (hint: {hint})")

    def saved(self, checksums: Checksums, identifier: str, seconds: float) -> SavedImage:
        data_bytes = sum(length for _, length, _ in checksums)
        return SavedImage(
            target=self._source.disk.target,
            image=str(self._source.image),
            size=self._reader.size,
            data_bytes=data_bytes,
            stored_bytes=self._writer.written,
            seconds=seconds,
            restore_id=identifier,
            layout=self._reader.layout,
            read_bytes=data_bytes if self._parts is None else self._parts.read_bytes,
            source=self._reader.source,
            full_read=self._full_read,
        )

    def summary(self, saved: SavedImage) -> str:
        count = -(-saved.size // PIECE)
        read = count if self._parts is None else len(self._parts)
        return (
            f"{self._title} saved: {size_text(saved.size)}, {read} of {count} pieces read, "
            f"{size_text(saved.stored_bytes)} written to {self._saver.pool.image(self._name)}, "
            f"in {saved.seconds:.1f} s"
        )

    def _require_alone(self) -> None:
        """Wait until no other client has the image open for writing. Raises TransientError."""
        deadline = time.monotonic() + USERS_LIMIT
        while len(users := self._saver.pool.users(self._name)) > 1:
            if time.monotonic() > deadline:
                image = self._saver.pool.image(self._name)
                message = f"image {image} of the repository is open at {', '.join(users)}"
                raise TransientError(message, f"which of them is no backup? see rbd status {image}")
            self._job.check_stop()
            time.sleep(USERS_POLL)

    def _require_unchanged(self, last: str) -> None:
        """Raise BackupError if the image differs from its last snapshot, although we did not write to it."""
        if not self._saver.pool.is_changed(self._name, last):
            return
        image = self._saver.pool.image(self._name)
        if last:
            message = f"image {image} of the repository was written to by others since {last}"
            hint = f"what they wrote is lost with: rbd snap rollback {image}@{last}"
        else:  # without a restore point in it, it may have another name
            message = f"image {image} exists, and is not of this program"
            hint = f"its name is needed in the repository: rbd rename {image} {image}.other"
        raise BackupError(message, hint)

    def _known(self, ours: Sequence[str]) -> Optional[_Before]:
        """Return the newest snapshot of the image with known checksums: that of the base, if possible."""
        base = self._source.base
        if base and (snapshot := self._snapshot_of(base.saved, ours)):
            return _Before(snapshot, base.saved.size, base.checksums)
        newest, target = self._saver.newest(), self._source.disk.target
        for image in newest.images if newest else ():
            if image.target == target and (snapshot := self._snapshot_of(image, ours)):
                assert newest
                return _Before(snapshot, image.size, newest.checksums[target])
        return None

    def _snapshot_of(self, saved: SavedImage, ours: Sequence[str]) -> str:
        """Return the snapshot of this image that has a saved image, "" if it is gone, or of another image."""
        name, snapshot = split_id(saved.restore_id)
        return snapshot if name == self._name and snapshot in ours else ""

    def _full_read_reason(self, ours: Sequence[str]) -> str:
        """Return the reason for a full read, "" if none is needed."""
        base = self._source.base
        if not base:
            return "there is no base snapshot of a previous backup"
        if not self._snapshot_of(base.saved, ours):
            return "the repository no longer has the previous backup"
        return full_read_due(base, self._saver.point.taken, self._saver.full_read_interval)

    def _plan(self, base: Base) -> str:
        """List the changes since the base snapshot; return why they cannot be trusted, "" if they can."""
        self._parts = changed_parts(self._reader, base, self._saver.fast_diff, self._progress)
        why = wrong_list(self._reader, base, self._parts)
        if why:
            self._log(Level.ERROR, f"{self._title}: {why}")
        return why

    def _progress(self, done: int) -> None:
        self._job.check_stop()
        target = self._source.disk.target
        self._job.reporter.progress(self._saver.point.domain.name, target, done, self._reader.size)

    def _log(self, level: Level, text: str) -> None:
        self._job.reporter.message(level, self._saver.point.domain.name, text)


@contextmanager
def _transient_if_gone() -> Iterator[None]:
    """Raise TransientError if an image or a snapshot is gone.

    A run removes what it left incomplete without the domain's lock: in the meantime another node may have
    begun to save the domain.
    """
    try:
        yield
    except ImageGone as error:
        raise TransientError(error.message, error.hint) from error


def _id(point: RestorePoint) -> PointId:
    return PointId(point.run, point.domain.uuid, point.attempt)
