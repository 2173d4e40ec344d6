"""The interfaces of the engine: reading images, writing them, reporting, and outputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Callable, Optional, Protocol, Union, runtime_checkable

from .errors import BackupError
from .job_result import Phase
from .model import Disk, Extent, Image, Level, ParentSnapshot
from .stored import (
    Base,
    Layout,
    Packed,
    PointId,
    RestorePoint,
    SavedDomain,
    SavedImage,
    SnapshotId,
    StoredPoint,
)


class ImageReads(Protocol):
    """An image, open for reading. `size` is in bytes."""

    size: int

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        """Start a read; the returned function waits for the bytes, exactly `length` of them.

        If it is not called, closing the image waits for the read.
        """


class SnapshotReader(ImageReads, Protocol):
    """A snapshot of an image, open for reading."""

    layout: Layout
    source: SnapshotId

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        """Yield the allocated extents, of all or of a part, in ascending order and without overlaps.

        Empty extents among them mark how far the listing has come, at multiples of READ_SIZE of
        transfer/backup_stream.py.
        """

    def changes(self, since: str, fast: bool) -> Generator[Extent, None, None]:
        """Yield the extents that may differ from an older snapshot, named `since`, in ascending order.

        `fast`: from the object map, if that is valid. Empty extents mark how far the listing has come.
        """


WrittenBytes = Union[bytes, bytearray]


class ImageWriter(Protocol):
    """A new image or file, open for writing. What is not written reads as zeros."""

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        """Start a write; the returned function waits for its end. Until then the bytes must not change."""


class RestoreTarget(Protocol):
    """The destination of a restored image: an RBD image or a file."""

    def require_free(self) -> None:
        """Raise BackupError if something exists there that must not be replaced."""

    def opened(self, check_stop: Callable[[], None], /) -> AbstractContextManager[ImageWriter]:
        """Create it under a temporary name and open it for writing; after the block it is complete."""

    def commit(self) -> None:
        """Give it its final name. Raises BackupError if that name has been taken meanwhile."""

    def remove_replaced(self) -> None:
        """Remove what it replaced; from now on nothing can be undone. Raises no BackupError."""

    def discard(self) -> None:
        """Undo everything, unless `remove_replaced` was called: remove it, and restore what it replaced."""


class SnapshotSource(Protocol):
    """A disk's snapshot, which an output opens when it is ready to read it."""

    @property
    def disk(self) -> Disk: ...

    @property
    def image(self) -> Image: ...

    @property
    def base(self) -> Optional[Base]:
        """The previous backup to build on, None for a full read."""

    def open(self) -> AbstractContextManager[SnapshotReader]: ...


class Reporter(Protocol):
    """Receives the engine's messages and progress. The domain's name is "" for the whole run."""

    def message(self, level: Level, domain: str, text: str) -> None: ...

    def phase(self, domain: str, phase: Phase, limit: float = math.inf) -> None:
        """Report that a job enters a phase; without further reports for `limit` seconds it counts as hung."""

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        """Report how many of an image's bytes are done, of all images together if `target` is "".

        Never blocks: reports may be dropped.
        """


class RunReporter(Reporter, Protocol):
    """Receives the beginnings and ends of several jobs, too."""

    def planned(self, uuid: str, domain: str, size: int) -> None:
        """Report a job that will run, or run again: it will process `size` bytes, 0 if unknown."""

    def ended(self, uuid: str, failed: bool) -> None:
        """Report that a job has ended."""


class Source(Protocol):
    """A saved image's bytes, in order. `received` counts them."""

    received: int

    def fill(self, buffer: memoryview) -> int:
        """Fill the buffer and return the number of bytes, fewer only at the end. Raises BackupError."""


class RandomAccess(Protocol):
    """A saved image, open for reading at any offset."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes, which lie within the image. Safe to call from several threads.

        Raises BackupError; also if the image is not as large as its manifest has it. May take for ever
        while the destination does not answer.
        """


class OpenedPoint(Protocol):
    """A complete restore point, open for reading."""

    def manifest(self) -> Packed:
        """Return its manifest, as it was packed. Raises BackupError."""

    def image(self, image: SavedImage) -> RandomAccess:
        """Open one of its images. Raises BackupError."""

    def check(self) -> None:
        """Raise BackupError if nothing can be read any more."""

    def damage(self) -> str:
        """Return what was found missing or damaged by reads until now, "" for nothing.

        At once, also where such a read is retried for a long time.
        """


class Job(Protocol):
    """What a job offers to the output that saves its images.

    `verifies`: `image_saved` compares each image, before the restore point may count.
    """

    reporter: Reporter

    @property
    def verifies(self) -> bool: ...

    def check_stop(self) -> None:
        """Raise if the job has to stop; called wherever it can stop safely."""

    def require_lock(self) -> None:
        """Wait until the job provably holds the domain's lock: called before a manifest is written.

        Raises BackupError if the lock was lost.
        """

    def image_saved(self, source: SnapshotSource, image: SavedImage) -> None:
        """Report that an image is stored completely; its snapshot may be removed from now on.

        Called before the manifest is written; if the job does not verify, perhaps after an output stored all
        in one step, or in a thread while other images are stored. With --verify it is compared first: raises
        Mismatch.
        """


class Output(Protocol):
    """A destination of backups. Instances are pickled on their way to the workers.

    `keeps_base_snapshots`: a domain's snapshots stay until its next backup, which then is incremental.
    `prunes`: KEEP_LAST and KEEP_WITHIN_DAYS hold here; `withdraw` removes what they do not keep.
    """

    @property
    def keeps_base_snapshots(self) -> bool: ...

    @property
    def prunes(self) -> bool: ...

    def configuration_errors(self) -> Sequence[BackupError]:
        """Return the errors in the settings, without access to the destination."""

    def problems(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[BackupError]:
        """Return what prevents backups to this destination now."""

    def advice(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[str]:
        """Return what makes backups to this destination slower than they could be."""

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        """Save every image, then the manifest, which makes them a restore point; or all in one step.

        Raises BackupError; then there is no restore point, or the run withdraws it.
        """

    def base(
        self,
        uuid: str,
        runs: Collection[str],
        known: Sequence[StoredPoint],
        check_stop: Callable[[], None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> Optional[SavedDomain]:
        """Return the newest complete restore point of the domain among those of `runs`, to build on.

        `known` are the domain's restore points as `ready` listed them, perhaps hours ago: if one of the runs
        is missing there, the destination is listed again. None if there is none, or none that this output
        can build on; if it is damaged, `warn` is called. Raises BackupError if it cannot be read now.
        """

    def last_saved(self, uuid: str, check_stop: Callable[[], None] = lambda: None) -> Optional[datetime]:
        """Return the time of the domain's newest restore point, None if there is none; none of the future.

        Raises BackupError.
        """

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        """List all restore points, oldest first, including incomplete ones; those of the future before them.

        Raises BackupError.
        """

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        """Return a complete restore point's manifest, as it was packed. Raises BackupError."""

    def image(self, image: SavedImage, check_stop: Callable[[], None]) -> AbstractContextManager[Source]:
        """Open an image for reading from its first to its last byte.

        Raises BackupError after the block if not all of it could be read.
        """

    def opened(
        self, point: StoredPoint, check_stop: Callable[[], None]
    ) -> AbstractContextManager[OpenedPoint]:
        """Open a complete restore point for reading at any offset, and keep it from being removed.

        Raises BackupError.
        """

    def holds(self, path: str, check_stop: Callable[[], None] = lambda: None) -> bool:
        """Return whether this path of this node lies in the destination. Raises BackupError."""

    def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        """Check before a run that backups are possible, and list the same as `restore_points`.

        Raises BackupError if they are not.
        """

    def discard(
        self,
        points: Collection[PointId],
        wait_if_busy: bool,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Remove the images of those of these restore points that are still incomplete.

        Also removes locks in the destination that provably dead programs of this node left. `wait_if_busy`:
        wait for a while if the destination is locked. Raises BackupError.
        """

    def withdraw(self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None) -> None:
        """Remove restore points, complete ones too: the manifest first. Raises BackupError.

        A transient error if one is in use, and stays.
        """


@runtime_checkable
class ClonesImages(Protocol):
    """An output whose images are snapshots of a Ceph cluster: a clone of one is there at once."""

    def parent(self, image: SavedImage) -> ParentSnapshot:
        """Return the snapshot that has a saved image."""
