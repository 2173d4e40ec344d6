"""The output restic_incremental: one `restic backup` of a domain's images, cut into segments as files.

The manifest is the last file of the same snapshot, see segments/last_files.py.

restic considers a file unchanged, and does not open it, if its size and times equal the parent snapshot's
(restic.readthedocs.io, "File change detection"). So a segment gets a new time exactly when one of its bytes
may differ from the parent's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional

from backup.errors import BackupError, PreviousBackupDamaged
from backup.model import Level
from backup.protocols import Job, SnapshotSource
from backup.restore_point import manifest
from backup.restore_point.find import with_current_ids
from backup.settings import Settings
from backup.stored import PointId, RestorePoint, SavedDomain, SavedImage, StoredPoint
from backup.system.private_directory import make_private
from backup.system.process_group import own_mount_namespace
from backup.system.spool import Spool
from backup.system.time_limit import awaited
from backup.text import size_text

from .restic_repository.dying_worker import ServedFiles
from .restic_repository.manifest_cache import ManifestCache
from .restic_repository.messages import ResticError, Summary
from .restic_repository.repository import Repository, manifest_tags, named
from .restic_repository.snapshots import TAG, segments_tag, stored_points
from .segments.changed import SegmentedDisk, planned
from .segments.files import SegmentFiles, mounted
from .segments.fuse import fuse_problems
from .segments.last_files import LastFiles
from .segments.layout import pack_times
from .segments.monitor import Monitor

MOUNTPOINT = "segments"  # in RUNTIME_DIR
READ_CONCURRENCY = (0, 15, 0)  # the first version of restic with this option


@dataclass(frozen=True)
class ResticIncremental(Repository):
    """Saves the changes since the base snapshots. Satisfies backup.protocols.Output.

    `mountpoint` is a directory. `full_read_days`: the days between full reads, 0 for no further ones.
    `fast_diff`: trust the images' object maps. `read_concurrency`: files that restic reads at the same time,
    0 for its own default.
    """

    mountpoint: str = ""
    full_read_days: int = 0
    fast_diff: bool = False
    read_concurrency: int = 0

    keeps_base_snapshots = True

    @classmethod
    def _own_settings(cls, settings: Settings) -> Mapping[str, Any]:
        return {
            "mountpoint": f"{settings.runtime_dir}/{MOUNTPOINT}",
            "full_read_days": settings.full_read_days,
            "fast_diff": settings.fast_diff,
            "read_concurrency": settings.restic_read_concurrency,
        }

    @property
    def _manifests(self) -> ManifestCache:
        return ManifestCache(self.program.state_dir)

    def problems(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[BackupError]:
        """Return what prevents backups: problems of the repository, or FUSE missing on this node."""
        return [*fuse_problems(), *super().problems(check_stop)]

    def advice(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[str]:
        """Return also that this restic reads two files at a time, whatever the settings say."""
        try:
            ignored = self.read_concurrency and not self._concurrency(check_stop)
        except ResticError:  # nothing to advise: `problems` has tried it
            ignored = False
        text = "RESTIC_READ_CONCURRENCY has no effect: it needs restic 0.15 or newer"
        return [*super().advice(check_stop), *([text] if ignored else [])]

    def _concurrency(self, check_stop: Callable[[], None]) -> Sequence[str]:
        """Return the option with which restic reads several files at a time, if it has that option."""
        if self.read_concurrency and self._version(check_stop) >= READ_CONCURRENCY:
            return (f"--read-concurrency={self.read_concurrency}",)
        return ()

    def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        """Check FUSE too, before a run freezes any guest."""
        for problem in fuse_problems():
            raise problem
        return super().ready(check_stop)

    def base(
        self,
        uuid: str,
        runs: Collection[str],
        known: Sequence[StoredPoint],
        check_stop: Callable[[], None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> Optional[SavedDomain]:
        """Read the manifest of the newest restore point of these runs that this output saved.

        `known` is enough if it has all of these runs: another node may have saved the domain since. Its ids
        are wrong if `restic tag` has changed them since; then the repository is listed again. A damaged
        manifest cannot be built on: it causes a warning. Other errors of reading are raised.
        """
        found = None
        if {*runs} <= {point.id.run for point in known if point.manifest_id}:
            found = self._newest(known, runs, check_stop, lambda _: None)
        return found or self._newest(self._stored(uuid, check_stop), runs, check_stop, warn)

    def _stored(self, uuid: str, check_stop: Callable[[], None]) -> Sequence[StoredPoint]:
        return stored_points(self._snapshots(f"--tag={TAG},uuid={uuid}", check_stop=check_stop))

    def _newest(
        self,
        points: Sequence[StoredPoint],
        runs: Collection[str],
        check_stop: Callable[[], None],
        warn: Callable[[str], None],
    ) -> Optional[SavedDomain]:
        for point in reversed(points):
            if point.manifest_id and point.id.run in runs:
                saved = self._saved(point, check_stop, warn)
                if saved and any(image.segment_size for image in saved.images):
                    return saved
        return None

    def _saved(
        self, point: StoredPoint, check_stop: Callable[[], None], warn: Callable[[str], None]
    ) -> Optional[SavedDomain]:
        """Read a manifest; None after a warning if it is damaged, has another format, or lacks images."""
        cached = self._manifests.find(point)
        try:
            packed = cached or self.manifest(point, check_stop)
        except ResticError as error:
            if not error.damaged:
                raise
            problem: BackupError = error
        else:
            try:
                saved = with_current_ids(manifest.unpack(packed), point)
                if not cached:
                    self._manifests.keep(point.id, point.manifest_id, packed)
                return saved
            except BackupError as error:
                problem = error
        taken = f"{point.taken:%Y-%m-%d %H:%M:%S} UTC"
        warn(f"cannot build on the restore point of {taken}, run {point.id.run}: {problem}")
        return None

    def save(
        self, point: RestorePoint, sources: Sequence[SnapshotSource], job: Job
    ) -> tuple[SavedImage, ...]:
        """Save the changed segments and the manifest in one snapshot, which counts as it exists.

        Images that are compared first count only then: a snapshot of its own has their manifest.
        """
        with ExitStack() as readers:
            disks = [self._planned(point, source, readers, job) for source in sources]
            saving = _Saving(point, disks, readers, job)
            summary = self._saved_snapshot(saving)
        images = [replace(image, restore_id=summary.snapshot_id) for image in saving.images]
        images[0] = replace(images[0], stored_bytes=summary.added)
        for disk, image in zip(disks, images):
            job.reporter.message(Level.INFO, point.domain.name, _summary_text(disk, image, summary))
            job.image_saved(disk.source, image)
        manifest_id = summary.snapshot_id
        if job.verifies:
            manifest_id = self.save_manifest(point, saving.packed, job)
        saved = PointId(point.run, point.domain.uuid, point.attempt)
        self._manifests.keep(saved, manifest_id, saving.packed)
        return tuple(images)

    def _saved_snapshot(self, saving: _Saving) -> Summary:
        point = saving.point
        try:
            return self.when_unlocked(partial(self._save_snapshot, saving), point, saving.job)
        except ResticError as error:
            if error.damaged:  # perhaps the parent has another id by now: a retry looks for it there
                self._manifests.drop(point.domain.uuid)
            raise

    def _planned(
        self, point: RestorePoint, source: SnapshotSource, stack: ExitStack, job: Job
    ) -> SegmentedDisk:
        reader = stack.enter_context(source.open())
        log = partial(_log, job, point.domain.name)
        full_read_interval = timedelta(days=self.full_read_days)
        return planned(source, reader, point.taken, full_read_interval, self.fast_diff, log)

    def _save_snapshot(self, saving: _Saving) -> Summary:
        point, disks, saving.began = saving.point, saving.disks, time.monotonic()
        for disk in disks:
            disk.files.read.clear()  # reads of an earlier attempt do not count
        last = LastFiles(saving.pack, int(point.taken.timestamp() * 1e9))
        files = SegmentFiles([disk.files for disk in disks], last)
        tags = [segments_tag(one.target, str(one.source.image), one.files.reader.size) for one in disks]
        parents = saving.parents
        arguments = (
            "--ignore-inode",  # another disk that is added or removed changes the inode numbers
            *([f"--parent={parent}" for parent in parents] or ["--force"]),
            *self._concurrency(saving.job.check_stop),
            *named(point, *tags, *(() if saving.job.verifies else manifest_tags(point))),
        )
        make_private(Path(self.mountpoint))
        changed = sum(disk.changed_bytes for disk in disks)
        monitor = Monitor(files, changed, self.program.stall_timeout, point.domain.name, saving.job)
        # In a thread with a private mount namespace, which the job's hooks must not share. The kernel
        # interrupts restic when the thread ends, which is after restic.
        with ThreadPoolExecutor(1, thread_name_prefix="mounts") as thread, _lost_data_reported(parents):
            # signals are handled in this thread, but only when it wakes up
            summary = awaited(thread.submit(self._backed_up, files, arguments, monitor), math.inf)
        size = sum(disk.files.size for disk in disks) + last.size
        if summary.processed != size or not last.given:
            read = "" if last.given else ", and did not read the manifest"
            message = f"segments and manifest have {size} bytes, restic saved {summary.processed}{read}"
            raise ResticError(message, "the restore point does not count")
        return summary

    def _backed_up(self, files: SegmentFiles, arguments: Sequence[str], monitor: Monitor) -> Summary:
        with mounted(files, self.mountpoint) as connections:
            served = ServedFiles(files.give_up, connections, own_mount_namespace())
            return self.program.backup_files(arguments, self.mountpoint, monitor.check, served)


@dataclass
class _Saving:
    """What is being saved: the disks with their readers, then the images, with which the manifest is packed.

    `images` lack the id of their snapshot, which does not exist yet. `began` is in time.monotonic().
    """

    point: RestorePoint
    disks: Sequence[SegmentedDisk]
    readers: ExitStack
    job: Job
    began: float = 0
    images: Sequence[SavedImage] = ()
    packed: Spool = field(default_factory=Spool)

    @property
    def parents(self) -> Collection[str]:
        of_disks = {disk.base.saved.restore_id for disk in self.disks if disk.base}
        return of_disks - {""}  # of an image without a byte, which is in no snapshot

    def pack(self) -> Spool:
        """Return the manifest once all segments were read. Raises BackupError if one is missing."""
        missing = sum(disk.missing for disk in self.disks)
        if missing:
            message = f"restic did not read {missing} of the changed segments"
            raise ResticError(message, "do RESTIC_OPTIONS exclude files?")
        self.readers.close()  # raises if a snapshot was removed while it was read
        self.job.require_lock()  # without it another run might remove the images as leftovers
        seconds = time.monotonic() - self.began
        checksums = {disk.target: disk.checksums() for disk in self.disks}
        times = {disk.target: pack_times(disk.files.times) for disk in self.disks}
        self.images = [disk.saved(checksums[disk.target], self.point.taken, seconds) for disk in self.disks]
        self.packed = manifest.pack(self.point, self.images, checksums, times)
        return self.packed


@contextmanager
def _lost_data_reported(parents: Collection[str]) -> Iterator[None]:
    """Map the error of a restic that missed data of its parents in the repository.

    It reads such files again, and ends as if it had not been able to read them. Their real errors come from
    the segments, before restic's own.
    """
    try:
        yield
    except ResticError as error:
        if not (parents and error.incomplete):
            raise
        message = (
            f"the repository has lost data of the previous backup, a full read is needed: {error.message}"
        )
        hint = "older restore points may be damaged too: run `restic check`, then `verify` what you need"
        raise PreviousBackupDamaged(message, hint) from error


def _log(job: Job, domain: str, level: Level, text: str) -> None:
    job.reporter.message(level, domain, text)


def _summary_text(disk: SegmentedDisk, image: SavedImage, summary: Summary) -> str:
    count = len(disk.files.segments) - len(disk.files.holes)
    new = f", {size_text(summary.added)} new for the whole domain" if image.stored_bytes else ""
    return (
        f"{image.target} ({image.image}) saved: {size_text(image.size)}, {len(disk.files.read)} of {count} "
        f"segments read, {size_text(image.read_bytes)} of data{new}, in {image.seconds:.1f} s"
    )
