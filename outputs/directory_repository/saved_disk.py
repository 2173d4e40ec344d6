"""Saves one disk into a new file: all of it, or what has changed, on top of the file of an earlier point."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Callable, Optional

from backup.errors import BackupError
from backup.model import Extent, Level
from backup.protocols import Job, SnapshotReader, SnapshotSource
from backup.restore_point.checksums import Checksums
from backup.stored import Packed, RestorePoint, SavedDomain, SavedImage
from backup.text import size_text

from ..own_points.changed_parts import PIECE, ChangedParts
from ..own_points.damaged_pieces import added, damaged_pieces
from ..own_points.plan import changed_parts, full_read_due, tail, wrong_list
from ..own_points.written_pieces import PieceWriter, write_all, write_changed
from .chain import length
from .domain_directory import DomainDirectory
from .errors import Unreadable
from .names import QCOW2, file_name, restore_id, split_id
from .new_image import NewImages
from .opened_image import opened_image
from .room import bytes_to_write, require_room

NOTHING = Checksums()


@dataclass(frozen=True)
class DiskSaver:
    """Saves the disks of one restore point, with this name, whose directory exists.

    `newest` returns the newest one that is complete, if there is any. `full_read_interval`: the time after
    which a full read is due, 0 for never. `fast_diff`: trust the images' object maps. `chain`: how many files
    at the most build on one that is complete by itself.
    """

    domain: DomainDirectory
    point: RestorePoint
    name: str
    images: NewImages
    newest: Callable[[], Optional[SavedDomain]]
    full_read_interval: timedelta
    fast_diff: bool
    chain: int

    def save(self, source: SnapshotSource, job: Job) -> tuple[SavedImage, Checksums]:
        """Save a disk; its file is then on the disk. Raises BackupError."""
        began = time.monotonic()
        with source.open() as reader:
            copy = _Copy(self, source, reader, job)
            copy.prepare()
            checksums = copy.write()
        saved = copy.saved(checksums, time.monotonic() - began)
        job.reporter.message(Level.INFO, self.point.domain.name, copy.summary(saved))
        return saved, checksums


@dataclass(frozen=True)
class _Before:
    """An earlier point's disk to build on: its file, what its manifest has of it, and its checksums."""

    file: Path
    saved: SavedImage
    checksums: Packed


class _Copy:
    """One disk on its way."""

    def __init__(self, saver: DiskSaver, source: SnapshotSource, reader: SnapshotReader, job: Job) -> None:
        self._saver = saver
        self._source = source
        self._reader = reader
        self._job = job
        self._title = f"{source.disk.target} ({source.image})"
        self._file = file_name(source.disk.target, saver.images.kind)
        self._full_read = saver.point.taken.isoformat()
        self._parts: Optional[ChangedParts] = None  # None: all is read
        self._before: Optional[_Before] = None  # None: nothing to build on
        self._unknown = ChangedParts(reader.size)  # pieces that the checksums do not describe
        self._written = 0
        self._done = 0

    def prepare(self) -> None:
        """Find out what has to be written, and whether there is room for it. Raises BackupError."""
        base = self._source.base
        self._before, why = self._known()
        if base and not why:
            why = full_read_due(base, self._saver.point.taken, self._saver.full_read_interval)
        if base and not why:
            self._parts = changed_parts(self._reader, base, self._saver.fast_diff, self._progress)
            if why := wrong_list(self._reader, base, self._parts):
                self._log(Level.ERROR, f"{self._title}: {why}")
                self._parts = None
        if why:
            self._log(Level.INFO, f"{self._title}: full read, {why}")
        if self._before and self._parts is None:
            self._before = self._checked(self._before)
        if self._parts is not None or not self._before:  # of a comparison nobody knows what differs
            needed = bytes_to_write(self._reader, self._parts, self._progress)
            require_room(self._saver.domain.path, needed, self._title)

    def write(self) -> Checksums:
        """Write the file, and return the checksums of the whole disk. Raises BackupError."""
        path = self._saver.domain.partial(self._saver.name) / self._file
        before, size = self._before, self._reader.size
        backing = before.file if before else None
        with self._saver.images.created(path, size, backing, self._alive) as image:
            writer = PieceWriter(image, fresh=not before)
            known = Checksums(before.checksums) if before else NOTHING
            if self._parts is None:
                checksums = write_all(self._reader, writer, known, self._unknown, self._progress)
            else:
                assert self._source.base
                self._full_read = self._source.base.saved.full_read
                checksums = write_changed(self._reader, writer, self._parts, known, self._progress)
        self._written = writer.written
        return checksums

    def saved(self, checksums: Checksums, seconds: float) -> SavedImage:
        data_bytes = sum(length for _, length, _ in checksums)
        return SavedImage(
            target=self._source.disk.target,
            image=str(self._source.image),
            size=self._reader.size,
            data_bytes=data_bytes,
            stored_bytes=self._written,
            seconds=seconds,
            restore_id=restore_id(self._saver.domain.uuid, self._saver.name, self._file),
            layout=self._reader.layout,
            read_bytes=data_bytes if self._parts is None else self._parts.read_bytes,
            source=self._reader.source,
            full_read=self._full_read,
        )

    def summary(self, saved: SavedImage) -> str:
        count = -(-saved.size // PIECE)
        read = count if self._parts is None else len(self._parts)
        path = self._saver.domain.final(self._saver.name) / self._file
        return (
            f"{self._title} saved: {size_text(saved.size)}, {read} of {count} pieces read, "
            f"{size_text(saved.stored_bytes)} written to {path}, in {saved.seconds:.1f} s"
        )

    def _known(self) -> tuple[Optional[_Before], str]:
        """Return what to build on, and why everything is read, "" if only changes are.

        The previous backup, if it is there; else the newest restore point, of which everything is compared.
        """
        base = self._source.base
        found: Optional[_Before]
        why = ""
        if self._saver.images.kind != QCOW2:
            return None, "a raw file is complete (DIRECTORY_FORMAT)"
        if base and (file := self._there(base.saved)):
            found = _Before(file, base.saved, base.checksums)
        else:
            found = self._newest()
            lost = "the directory has no qcow2 file of the previous backup"
            why = lost if base else "there is no base snapshot of a previous backup"
        try:
            count = length(found.file) if found else 0
        except BackupError as error:
            if error.transient:
                raise
            self._log_damaged(error)
            return None, "the last restore point is damaged"
        if count > self._saver.chain:
            return None, f"{count} files build on each other already (DIRECTORY_CHAIN)"
        return found, why

    def _newest(self) -> Optional[_Before]:
        newest, target = self._saver.newest(), self._source.disk.target
        for image in newest.images if newest else ():
            if image.target == target and (file := self._there(image)):
                assert newest
                return _Before(file, image, newest.checksums[target])
        return None

    def _checked(self, before: _Before) -> Optional[_Before]:
        """Have what is damaged in an earlier file written anew; None if it cannot be read: it is not used."""
        size = min(before.saved.size, self._reader.size)
        if before.saved.size != self._reader.size:
            self._unknown.add_pieces([tail(size, self._reader.size)])
        try:
            places = self._damage(before, Extent(0, size))
        except BackupError as error:
            self._job.check_stop()  # a reason to stop is no damage
            if error.transient and not isinstance(error, Unreadable):
                raise
            self._log_damaged(error)
            return None
        if places:
            text = f"{before.file} differs from what was saved: {places}; they are written anew"
            hint = "verify the restore points before this one, check the file system of DIRECTORY_OUTPUT"
            self._log(Level.ERROR, f"{self._title}: {text} (hint: {hint})")
        return before

    def _damage(self, before: _Before, within: Extent) -> str:
        """Add an earlier file's damaged pieces to the unknown ones; return where they are, "" if none are."""
        images, known = self._saver.images, Checksums(before.checksums)
        opening = opened_image(before.file, before.saved, images.runtime_dir, 1, images.limit, self._alive)
        with opening as image:
            return added(damaged_pieces(image, [within], known, self._unknown, self._progress), self._unknown)

    def _log_damaged(self, error: BackupError) -> None:
        self._log(Level.ERROR, f"{self._title}: cannot build on the last restore point: {error}")

    def _there(self, saved: SavedImage) -> Optional[Path]:
        """Return the file of a saved image if it can be built on: its point counts, and it is qcow2."""
        uuid, point, file = split_id(saved.restore_id)
        domain = self._saver.domain
        usable = uuid == domain.uuid and file.endswith(f".{QCOW2}") and domain.counts(point)
        return domain.final(point) / file if usable else None

    def _progress(self, done: int) -> None:
        self._done = max(self._done, done)
        self._alive()

    def _alive(self) -> None:
        """Report that it goes on. Raises the reason to stop."""
        self._job.check_stop()
        name, target = self._saver.point.domain.name, self._source.disk.target
        self._job.reporter.progress(name, target, self._done, self._reader.size)

    def _log(self, level: Level, text: str) -> None:
        self._job.reporter.message(level, self._saver.point.domain.name, text)
