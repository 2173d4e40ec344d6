"""An example of an output, which tests/README.md explains: restore points as files below a directory.

DIRECTORY/UUID/RUN.ATTEMPT/ has an image as a sparse file (vda.img), and definition.tar, the manifest.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, Optional

from backup.errors import BackupError, reason
from backup.protocols import Job, SnapshotSource, Source
from backup.restore_point import manifest
from backup.restore_point.checksums import Checksums
from backup.stored import Packed, PointId, RestorePoint, SavedDomain, SavedImage, StoredImage, StoredPoint
from backup.system.atomic_file import write_atomically
from backup.system.spool import Spool, chunks
from backup.transfer import backup_stream

MANIFEST = "definition.tar"


@dataclass(frozen=True)
class Directory:
    """Stores each image completely. Satisfies backup.protocols.Output."""

    directory: str

    keeps_base_snapshots = False
    prunes = True

    def configuration_errors(self) -> Sequence[BackupError]:
        return () if self.directory else [BackupError("DIRECTORY is not set", "name a directory")]

    def problems(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[BackupError]:
        if os.access(self.directory, os.W_OK | os.X_OK):
            return ()
        return [BackupError(f"cannot write to DIRECTORY {self.directory}", "create it, or mount it")]

    def advice(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[str]:
        return ()

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        place = self._place(PointId(point.run, point.domain.uuid, point.attempt))
        images, checksums = [], {}
        with _named_errors(place):
            place.mkdir(parents=True, mode=0o700)
            for source in sources:
                image, checksums[source.disk.target] = _save_image(place, source, point, job)
                images.append(image)
                job.image_saved(source, image)
            job.require_lock()  # without it another run could be saving the domain
            write_atomically(place / MANIFEST, chunks(manifest.pack(point, images, checksums)))
        return tuple(images)

    def base(
        self,
        uuid: str,
        runs: Collection[str],
        known: Sequence[StoredPoint],
        check_stop: Callable[[], None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> Optional[SavedDomain]:
        return None  # nothing builds on a previous backup

    def last_saved(self, uuid: str, check_stop: Callable[[], None] = lambda: None) -> Optional[datetime]:
        points = self.restore_points(check_stop)
        return max((one.taken for one in points if one.id.uuid == uuid and one.manifest_id), default=None)

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        points = []
        for place in Path(self.directory).glob("*/*.*"):
            check_stop()
            with _named_errors(place):
                points.append(_listed(place))
        return sorted(points, key=lambda point: point.taken)

    def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        for problem in self.problems(check_stop):
            raise problem
        return self.restore_points(check_stop)

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Packed:
        with _named_errors(place := self._place(point.id)):
            return Spool((place / MANIFEST).read_bytes())

    @contextmanager
    def image(self, image: SavedImage, check_stop: Callable[[], None]) -> Iterator[Source]:
        path = Path(self.directory, image.restore_id)
        with _named_errors(path), path.open("rb") as file:
            yield _FileSource(file.fileno(), check_stop)

    @contextmanager
    def opened(self, point: StoredPoint, check_stop: Callable[[], None]) -> Iterator[_Opened]:
        with ExitStack() as stack:
            yield _Opened(self, point, stack)

    def holds(self, path: str, check_stop: Callable[[], None] = lambda: None) -> bool:
        return Path(self.directory).resolve() in (real := Path(path).resolve(), *real.parents)

    def discard(
        self,
        points: Collection[PointId],
        wait_if_busy: bool,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.withdraw([one for one in points if not (self._place(one) / MANIFEST).exists()], check_stop)

    def withdraw(self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None) -> None:
        for point in points:
            check_stop()
            with _named_errors(place := self._place(point)):
                (place / MANIFEST).unlink(missing_ok=True)  # first, so that it never lacks an image
                shutil.rmtree(place)

    def _place(self, point: PointId) -> Path:
        return Path(self.directory, point.uuid, f"{point.run}.{point.attempt}")


def _save_image(
    place: Path, source: SnapshotSource, point: RestorePoint, job: Job
) -> tuple[SavedImage, Checksums]:
    """Write an image's data; holes stay holes."""
    started, target = time.monotonic(), source.disk.target
    path, checksums, data_bytes = place / f"{target}.img", Checksums(), 0
    with source.open() as reader, path.open("xb") as file:
        file.truncate(reader.size)
        for offset, data in backup_stream.pieces(reader):
            job.check_stop()
            if data:
                checksums.add(offset, data)
                file.seek(offset)
                file.write(data)
                data_bytes += len(data)
            job.reporter.progress(point.domain.name, target, offset + len(data), reader.size)
        file.flush()
        os.fsync(file.fileno())
    saved = SavedImage(
        target=target,
        image=str(source.image),
        size=reader.size,
        data_bytes=data_bytes,
        stored_bytes=data_bytes,
        seconds=time.monotonic() - started,
        restore_id=f"{place.parent.name}/{place.name}/{path.name}",
        layout=reader.layout,
        read_bytes=data_bytes,
        source=reader.source,
    )
    return saved, checksums


def _listed(place: Path) -> StoredPoint:
    """Describe a restore point by its manifest, or an incomplete one by its directory's name."""
    run, _, attempt = place.name.rpartition(".")
    which = PointId(run, place.parent.name, int(attempt))
    try:
        saved = manifest.unpack((place / MANIFEST).read_bytes())
    except FileNotFoundError:
        began = datetime.fromtimestamp(place.stat().st_mtime, timezone.utc)
        return StoredPoint(which, which.uuid, began, "", "", (), manifest_id="")
    images = tuple(StoredImage(one.target, one.image, one.size, one.restore_id) for one in saved.images)
    return StoredPoint(
        which, saved.name, saved.taken, saved.consistency.value, "", images, manifest_id=MANIFEST
    )


@dataclass(frozen=True)
class _Opened:
    """A restore point, of which nothing can be removed while its files are open.

    Satisfies backup.protocols.OpenedPoint.
    """

    output: Directory
    point: StoredPoint
    stack: ExitStack

    def manifest(self) -> Packed:
        return self.output.manifest(self.point)

    def image(self, image: SavedImage) -> _OpenedFile:
        path = Path(self.output.directory, image.restore_id)
        with _named_errors(path):
            return _OpenedFile(path, self.stack.enter_context(path.open("rb")).fileno(), image.size)

    def check(self) -> None:
        pass

    def damage(self) -> str:
        return ""


@dataclass(frozen=True)
class _OpenedFile:
    """Reads an open file at any offset. Satisfies backup.protocols.RandomAccess."""

    path: Path
    descriptor: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        with _named_errors(self.path):
            data = os.pread(self.descriptor, length, offset)
            found = os.fstat(self.descriptor).st_size
        if len(data) < length or found != self.size:
            message = f"{self.path} has {found} bytes, its manifest {self.size}"
            raise BackupError(message, "choose another restore point")
        return data


class _FileSource:
    """Reads an open file from its beginning. Satisfies backup.protocols.Source."""

    def __init__(self, descriptor: int, check_stop: Callable[[], None]) -> None:
        self.received = 0
        self._descriptor = descriptor
        self._check_stop = check_stop

    def fill(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            self._check_stop()
            got = os.preadv(self._descriptor, [buffer[filled:]], self.received)
            if not got:
                break
            filled += got
            self.received += got
        return filled


@contextmanager
def _named_errors(place: Path) -> Iterator[None]:
    """Turn an OSError into an error that an admin can act on."""
    try:
        yield
    except OSError as error:
        raise BackupError(f"{place}: {reason(error)}", "check DIRECTORY and its disk") from error
