"""Restores the images below the overlays, each for itself: what is complete is not restored again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Callable

from ..ceph.image_writer import ImageWriter
from ..ceph.new_image import NewImage, undo_replacement
from ..ceph.overlay_image import FORGET_LIMIT, POLL, image_id
from ..command import COMMAND
from ..errors import BackupError, TransientError
from ..instant.record import Record
from ..restore.images import ImageRestore, RestoredImage, Wanted
from .given import Given
from .journal import Journal

DAMAGED_HINT = (
    "the same command with --damaged restores it all the same; or --instant --abort, and then a sound "
    f"restore point with --at: `{COMMAND} restore-points` lists them, `{COMMAND} verify DOMAIN --at ...` "
    "checks one"
)


@dataclass(frozen=True)
class FilledImage:
    """An image that gets its final name as soon as it is complete. Satisfies protocols.RestoreTarget."""

    new: NewImage
    target: str
    journal: Journal
    check_stop: Callable[[], None]

    def __str__(self) -> str:
        return str(self.new)

    def require_free(self) -> None:
        """Wait until Ceph has forgotten a process that was filling it when it was killed."""
        deadline = time.monotonic() + FORGET_LIMIT
        while True:
            try:
                return self.new.require_free()
            except TransientError:
                if time.monotonic() > deadline:
                    raise
            self.check_stop()
            time.sleep(POLL)

    @contextmanager
    def opened(self, check_stop: Callable[[], None]) -> Iterator[ImageWriter]:
        with self.new.opened(check_stop) as writer:
            yield writer
        # before it has its name: what has this name and another id is not the restored image
        self.journal.set_filled(self.target, self.new.id)
        self.new.commit()
        self.new.keep()

    def commit(self) -> None:
        """Do nothing: it has its name."""

    def remove_replaced(self) -> None:
        """Do nothing: that happens when all disks are moved, so that all are replaced or none."""

    def discard(self) -> None:
        self.new.discard()


def require_filled(given: Given, journal: Journal) -> None:
    """Check that the images recorded as complete are still there; others are restored again.

    Raises BackupError if an image or overlay is gone that has the guest's writes.
    """
    for overlay in (disk.place.overlay for disk in journal.record.on_overlays):
        if not image_id(given.cluster, overlay):
            message = f"the overlay {overlay}, which had what the guest has written, is gone"
            raise BackupError(
                message, f"is it there? rbd trash ls --all {overlay.place}; or --abort --discard"
            )

    def checked(record: Record) -> Record:
        disks = []
        for disk in record.disks:
            there = disk.filled and image_id(given.cluster, disk.place) == disk.filled
            if disk.moved and not there:
                message = f"the image {disk.image}, which had all that the guest has written, is gone"
                raise BackupError(
                    message, f"rbd trash ls --all {disk.place.place}; --abort --discard ends it"
                )
            if not there:
                undo_replacement(given.cluster, disk.place)
            disks.append(disk if there else replace(disk, filled=""))
        return replace(record, disks=tuple(disks))

    journal.change(checked)


def fill(given: Given, journal: Journal) -> Sequence[RestoredImage]:
    """Restore what is not complete; return all disks. Raises BackupError; what is complete by then stays."""
    filled = {disk.target for disk in journal.record.disks if disk.filled}
    wanted: Wanted = [
        (one, FilledImage(new_image(given, one.target), one.target, journal, given.stop.check))
        for one in given.saved.images
        if one.target not in filled
    ]
    done: dict[str, RestoredImage] = {}
    restore = ImageRestore(
        *(given.saved.name, given.output, given.settings.stream_count, given.reporter, given.stop),
        checksums=given.saved.checksums,
        damaged=given.damaged,
        damaged_hint=DAMAGED_HINT,
    )
    if wanted:
        with restore.staged(wanted) as restored:
            done = {one.saved.target: one for one in restored}
    return [
        done.get(one.target) or RestoredImage(one, str(given.places[one.target]), 0, 0.0)
        for one in given.saved.images
    ]


def new_image(given: Given, target: str) -> NewImage:
    """Return the image that a disk of the restore point is restored to."""
    (saved,) = [one for one in given.saved.images if one.target == target]
    return NewImage(given.cluster, given.places[target], saved, given.force, given.reporter, given.stop)
