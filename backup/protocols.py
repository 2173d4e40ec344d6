"""The protocols at the engine's seams: what reads, what reports, where backups go."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Callable, Optional, Protocol, Union

from .errors import BackupError
from .job_result import Phase
from .model import Disk, Extent, Image, Level
from .stored import Base, HeldPoint, Layout, PointId, RestorePoint, SavedDomain, SavedImage, SnapshotId


class SnapshotReader(Protocol):
    """A snapshot of an image, open for reading. `size` is in bytes."""

    size: int
    layout: Layout
    source: SnapshotId

    def extents(self, within: Extent | None = None) -> Generator[Extent, None, None]:
        """Yield what is allocated, everywhere or in an extent, in ascending order and without overlaps.

        Extents of no bytes among it tell how far all is listed, at multiples of stream.READ_SIZE.
        """

    def changes(self, since: str, fast: bool) -> Generator[Extent, None, None]:
        """Yield all that may differ from an older snapshot of the image, in ascending order.

        `since` is its name. `fast`: as the object map has it, where that can be trusted. Extents of no bytes
        among it tell how far all is listed.
        """

    def start_read(self, offset: int, length: int) -> Callable[[], bytes]:
        """Start to read; the returned call waits for the bytes, exactly `length` of them."""


WrittenBytes = Union[bytes, bytearray]


class ImageWriter(Protocol):
    """A new image, or a new file, open for writing. What is not written reads as zeros."""

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        """Start to write; the returned call waits for it. The bytes must not change until then."""


class RestoreTarget(Protocol):
    """Where a saved image goes, and what it is called."""

    def require_free(self) -> None:
        """Raise BackupError if something is in the way that must not be replaced."""

    def opened(self, check_stop: Callable[[], None], /) -> AbstractContextManager[ImageWriter]:
        """Make it under a temporary name, and open it for writing; after the block it is complete."""

    def commit(self) -> None:
        """Give it its name. Raises BackupError if the name is another's by now."""

    def keep(self) -> None:
        """Remove what it has taken the place of. Raises nothing that an admin could act on."""

    def discard(self) -> None:
        """Remove what was made, and give what was there its name back, unless it was to be kept."""


class SnapshotSource(Protocol):
    """A disk's snapshot that an output can open when its turn comes."""

    @property
    def disk(self) -> Disk: ...

    @property
    def image(self) -> Image: ...

    @property
    def base(self) -> Optional[Base]:
        """What this backup can build on, None if everything has to be read."""

    def open(self) -> AbstractContextManager[SnapshotReader]: ...


class Reporter(Protocol):
    """Takes what the engine has to say. The domain's name is "" for the run as a whole."""

    def message(self, level: Level, domain: str, text: str) -> None: ...

    def phase(self, domain: str, phase: Phase, limit: float = math.inf) -> None:
        """Say that a job enters a phase, and that it hangs if nothing more is said for `limit` seconds."""

    def progress(self, domain: str, target: str, done: int, size: int) -> None:
        """Say how many of an image's bytes have passed; of all that is to be read where `target` is "".

        Never waits: not all of it has to be shown.
        """


class RunReporter(Reporter, Protocol):
    """Takes what there is to say of several jobs, too."""

    def planned(self, uuid: str, domain: str, size: int) -> None:
        """Say that a job is to come, for the second time too; it is to pass `size` bytes, 0 if unknown."""

    def ended(self, uuid: str, failed: bool) -> None: ...


class Source(Protocol):
    """A saved image's bytes, one after the other. `received` counts them."""

    received: int

    def fill(self, buffer: memoryview) -> int:
        """Fill the buffer and return its length, or less where there is no more. Raises BackupError."""


class Job(Protocol):
    """What an output may ask of the job that it works for."""

    reporter: Reporter

    def check_stop(self) -> None:
        """Raise if the job has to end; called at every place where it safely can."""

    def require_lock(self) -> None:
        """Wait until the domain's lock is provably the job's own: before a manifest is written.

        Raises if it was lost.
        """

    def image_saved(self, source: SnapshotSource, image: SavedImage) -> None:
        """Say that all of an image has arrived. Where that was to be proven at once, raises Mismatch.

        Then the snapshot is needed no more: its removal begins.
        """


class Output(Protocol):
    """A destination of backups. Instances are pickled on their way to the workers.

    `keeps_snapshots`: a domain's snapshots are kept until its next backup, which then saves only what has
    changed since.
    """

    keeps_snapshots: bool

    def configuration_errors(self) -> Sequence[BackupError]:
        """What of the settings alone cannot work, without a look at the destination."""

    def problems(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[BackupError]:
        """What keeps the destination from taking a backup now."""

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        """Save every image and then, last, the manifest that makes them a restore point.

        Raises BackupError, and has then left nothing that counts as a restore point.
        """

    def base(
        self,
        uuid: str,
        runs: Collection[str],
        known: Sequence[HeldPoint],
        check_stop: Callable[[], None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> Optional[SavedDomain]:
        """Give the newest complete restore point of a domain that one of these runs saved, to build on.

        `known` are the domain's as `ready` listed them, maybe hours ago: where one of these runs is not among
        them, the destination is asked again. None if there is none, or none that this output can build on;
        `warn` takes a line where that is because of damage. Raises BackupError if it can not be read now.
        """

    def last_saved(self, uuid: str, check_stop: Callable[[], None] = lambda: None) -> Optional[datetime]:
        """Tell of what moment the domain's newest restore point is, None if there is none.

        Raises BackupError.
        """

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[HeldPoint]:
        """List all restore points, the oldest first, and what is left of those that are not complete.

        Raises BackupError.
        """

    def manifest(self, point: HeldPoint, check_stop: Callable[[], None] = lambda: None) -> bytes:
        """Give a complete restore point's manifest, as it was packed. Raises BackupError."""

    def image(self, image: SavedImage, check_stop: Callable[[], None]) -> AbstractContextManager[Source]:
        """Open an image for reading from its first to its last byte.

        Raises BackupError after the block if not all of it could be read.
        """

    def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[HeldPoint]:
        """Make sure, before a run, that backups can be taken, and list what `restore_points` does.

        Raises BackupError: what keeps the destination from taking a backup.
        """

    def discard(
        self,
        points: Collection[PointId],
        patient: bool,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Remove the images of those of these restore points that are not complete even now.

        And the locks that programs of this node left in the destination that are provably dead. `patient`:
        wait for a while if it is busy. Raises BackupError.
        """

    def withdraw(self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None) -> None:
        """Remove restore points that were found to lack images, their manifests included.

        Raises BackupError.
        """
