"""A restic repository: lists and reads restore points, saves manifests, removes incomplete points."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

from backup.errors import BackupError
from backup.model import Level
from backup.protocols import Job, Source
from backup.settings import Settings
from backup.stored import PointId, RestorePoint, SavedDomain, SavedImage, StoredPoint, is_future
from backup.system.spool import CHUNK, Spool

from ..segments.archive import SegmentSource
from ..segments.layout import Segments
from .keys import advice, learn
from .locks import Lock, remove_dead_locks
from .messages import ResticError, from_json
from .mounted_point import MountedPoint, opened_point
from .own_directory import OwnDirectory
from .password import password_file_errors
from .program import Program
from .snapshots import (
    LOCK_TAG,
    MANIFEST_FILE,
    MANIFEST_TAG,
    TAG,
    encoded,
    file_name,
    incomplete,
    manifest_file,
    point_id,
    stored_points,
    time_of,
)
from .waits import limited, wait, when_free
from .written_files import file_problems

OLDEST_VERSION = (0, 14, 0)
MOUNT_WAITS = (
    "a prune, or another program that locks the repository, runs: wait for its end; meanwhile "
    "`restore --to-file` reads a disk without a lock"
)
UNLOCK_LIMIT = 15.0  # seconds to remove a lock that a mount has left
VERSION_LIMIT = 60  # seconds for `restic version`: the node may be under load
DISCARD_PAUSES = (
    1,
    2,
    4,
    8,
    16,
)  # seconds between attempts to remove snapshots while the repository is locked
LOCK_PAUSE = 5.0  # seconds between attempts to save while the repository is locked

Result = TypeVar("Result")
Self = TypeVar("Self", bound="Repository")


@dataclass(frozen=True)
class Repository:
    """A restic repository: all of backup.protocols.Output except saving images.

    `lock_wait`: seconds to wait while another program has locked the repository. `strict`: a list in which
    snapshots that restic could not read are missing is an error of `restore_points`, as a run fails what it
    does not find there.
    """

    program: Program
    lock_wait: float = 0
    strict: bool = False

    keeps_base_snapshots = False
    prunes = False  # `restic forget` does

    @classmethod
    def from_settings(cls: type[Self], settings: Settings, strict: bool = False) -> Self:
        return cls(
            Program(
                binary=settings.restic_binary,
                repository=settings.restic_repository,
                password_file=settings.restic_password_file,
                environment=settings.restic_environment,
                options=tuple(settings.restic_options),
                stall_timeout=settings.output_stall_timeout,
                runtime_dir=settings.runtime_dir,
                state_dir=settings.state_dir,
            ),
            settings.lock_wait,
            strict,
            **cls._own_settings(settings),
        )

    @classmethod
    def _own_settings(cls, settings: Settings) -> Mapping[str, Any]:
        """Return the further arguments of a subclass."""
        return {}

    def configuration_errors(self) -> Sequence[BackupError]:
        """Return what is missing: a repository, a password, a password file with safe permissions."""
        errors = []
        given = self.program.environment
        if not self.program.repository and not {"RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE"} & set(given):
            errors.append(
                BackupError("RESTIC_REPOSITORY is not set", "set it to the repository for the backups")
            )
        if self.program.password_file:
            errors += password_file_errors(Path(self.program.password_file))
        elif not {"RESTIC_PASSWORD", "RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND"} & set(given):
            errors.append(
                BackupError("RESTIC_PASSWORD_FILE is not set", "set it to a file with the password")
            )
        return errors

    def problems(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[BackupError]:
        """Return what prevents backups: restic's version, the repository's location, its password.

        Also what restic or rclone write on this node, and cannot.
        """
        try:
            self._require_version(check_stop)
            self._call("cat", "config", "--no-lock", "--quiet", check_stop=check_stop)
        except ResticError as error:
            return [error, *file_problems(self.program)]
        return list(file_problems(self.program))

    def advice(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[str]:
        """Return what the repository's keys cost, if that could be less."""
        try:
            return advice(self.program, check_stop)
        except ResticError:  # nothing to advise: `problems` has tried the repository
            return ()

    def base(
        self,
        uuid: str,
        runs: Collection[str],
        known: Sequence[StoredPoint],
        check_stop: Callable[[], None],
        warn: Callable[[str], None] = lambda _: None,
    ) -> Optional[SavedDomain]:
        """Return None: every backup is a full read."""
        return None

    def last_saved(self, uuid: str, check_stop: Callable[[], None] = lambda: None) -> Optional[datetime]:
        """Return the time of this domain's newest manifest, from any node; none of the future."""
        tags = f"--tag={TAG},uuid={uuid},{MANIFEST_TAG}"
        times = map(time_of, self._snapshots(tags, check_stop=check_stop))
        return max((one for one in times if not is_future(one)), default=None)

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        """List all restore points, of all nodes and domains."""
        return self._listed(check_stop, self.strict)

    def _listed(self, check_stop: Callable[[], None], complete: bool) -> Sequence[StoredPoint]:
        self._require_version(check_stop)
        return stored_points(self._snapshots(f"--tag={TAG}", check_stop=check_stop, complete=complete))

    def manifest(self, point: StoredPoint, check_stop: Callable[[], None] = lambda: None) -> Spool:
        """Return the manifest as it was packed."""
        packed, buffer = Spool(), memoryview(bytearray(CHUNK))
        with self.program.dump(point.manifest_id, manifest_file(point), check_stop) as source:
            while got := source.fill(buffer):
                packed.append(buffer[:got])
        return packed

    @contextmanager
    def image(self, image: SavedImage, check_stop: Callable[[], None]) -> Iterator[Source]:
        """Read an image with `restic dump`: a file, or an archive of its segments."""
        segments = Segments(image.target, image.size, image.segment_size)
        path = f"/{segments.directory}" if image.segment_size else file_name(image.target)
        with self.program.dump(image.restore_id, path, check_stop) as source:
            yield SegmentSource(source, segments) if image.segment_size else source

    @contextmanager
    def opened(self, point: StoredPoint, check_stop: Callable[[], None]) -> Iterator[MountedPoint]:
        """Mount a restore point's snapshots with `restic mount`, in private."""
        try:
            with opened_point(self.program, point, check_stop) as opened:
                yield opened
        except ResticError as error:
            if error.locked:
                error.hint = MOUNT_WAITS
            raise
        finally:
            # restic 0.14 leaves its lock if it is interrupted while it creates it; the next run would remove
            # it, but this node may have none. Without such a record this asks nothing
            with suppress(BackupError):
                remove_dead_locks(self.program, limited(UNLOCK_LIMIT, "the removal of a lock"))

    def holds(self, path: str, check_stop: Callable[[], None] = lambda: None) -> bool:
        """Return whether a path is in the repository's directory, if that is certainly on this node."""
        own, real = OwnDirectory(self.program, check_stop), Path(path).resolve()
        locks = own.locks
        return locks is not None and own.answer(locks.parent.resolve) in (real, *real.parents)

    def ready(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        """Check restic's version, learn which key to try first, and list all restore points."""
        with suppress(ResticError):  # the listing fails too, or nothing is lost but half a second a call
            learn(self.program, check_stop)
        return self._listed(check_stop, complete=False)  # a damaged snapshot prevents no backup

    def discard(
        self,
        points: Collection[PointId],
        wait_if_busy: bool,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Remove images without a manifest, and the locks of our own dead restics.

        Such images would confuse `restic forget`, which counts the snapshots of each file separately.
        """
        pauses = DISCARD_PAUSES if wait_if_busy else ()
        when_free(partial(self._discard, points, check_stop), pauses, check_stop)

    def withdraw(self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None) -> None:
        """Remove restore points that lack images, including their manifests."""

        def forget() -> None:
            snapshots = self._snapshots(f"--tag={TAG}", check_stop=check_stop, complete=True)
            found = [one for one in snapshots if point_id(one) in points]
            # restic removes in any order, and ends at an error: the manifests first, which make points count
            self._forget([one["id"] for one in found if MANIFEST_TAG in one["tags"]], check_stop)
            self._forget([one["id"] for one in found if MANIFEST_TAG not in one["tags"]], check_stop)

        when_free(forget, DISCARD_PAUSES, check_stop)

    def _discard(self, points: Collection[PointId], check_stop: Callable[[], None]) -> None:
        # a restic that was interrupted while it created its lock (0.14) or was killed has left a lock, which
        # would block `forget`
        remaining = remove_dead_locks(self.program, check_stop)
        if points:
            # without one that could not be read, a manifest's for example, a whole point looks incomplete
            snapshots = self._snapshots(f"--tag={TAG}", check_stop=check_stop, complete=True)
            discarded = incomplete(snapshots) & set(points)
            self._forget([one["id"] for one in snapshots if point_id(one) in discarded], check_stop)
        elif remaining:
            raise _locks_left(remaining)

    def _forget(self, ids: Sequence[str], check_stop: Callable[[], None]) -> None:
        if ids:
            self._call("forget", "--quiet", *ids, check_stop=check_stop, complete=True)

    def _call(self, *arguments: str, check_stop: Callable[[], None], complete: bool = False) -> str:
        limit = self.program.call_limit
        return self.program.call(*arguments, limit=limit, check_stop=check_stop, complete=complete)

    def _snapshots(
        self, *which: str, check_stop: Callable[[], None] = lambda: None, complete: bool = False
    ) -> Sequence[Mapping[str, Any]]:
        """List snapshots; without a lock, as listing needs none.

        `complete`: an error if restic could not read one; otherwise that is missing.
        """
        arguments = ("snapshots", "--json", "--no-lock", *which)
        return from_json(self._call(*arguments, check_stop=check_stop, complete=complete), list)

    def when_unlocked(self, save: Callable[[], Result], point: RestorePoint, job: Job) -> Result:
        """Save, waiting up to LOCK_WAIT while another program, such as a prune, has locked the repository.

        The lock is not touched: its owner may be alive.
        """
        began = time.monotonic()
        reported = False
        while True:
            try:
                return save()
            except ResticError as error:
                if not error.locked:
                    raise
                if time.monotonic() > began + self.lock_wait:
                    error.transient = not self.lock_wait  # after waiting there is no retry
                    raise
                text = f"waiting up to {self.lock_wait:.0f} s (LOCK_WAIT): {error}"
                level = Level.DEBUG if reported else Level.WARNING  # again: a sign of life
                job.reporter.message(level, point.domain.name, text)
                reported = True
            wait(LOCK_PAUSE, job.check_stop)

    def save_manifest(self, point: RestorePoint, packed: Spool, job: Job) -> str:
        """Save the manifest, with which the restore point counts, and return the id of its snapshot."""
        arguments = (*named(point, *manifest_tags(point)), f"--stdin-filename={MANIFEST_FILE}")

        def save() -> str:
            job.require_lock()  # without it another run might remove the images as leftovers
            return self.program.backup_whole(arguments, packed, job.check_stop).snapshot_id

        return self.when_unlocked(save, point, job)

    def _require_version(self, check_stop: Callable[[], None]) -> None:
        version = self._version(check_stop)
        if version < OLDEST_VERSION:
            found, oldest = (".".join(map(str, one)) for one in (version, OLDEST_VERSION))
            message = f"restic has version {found}, but {oldest} or newer is required"
            raise ResticError(message, "see RESTIC_BINARY")

    def _version(self, check_stop: Callable[[], None]) -> tuple[int, ...]:
        """Return restic's version. Raises ResticError."""
        printed = self.program.call("version", limit=VERSION_LIMIT, check_stop=check_stop)
        found = re.match(r"restic (\d+)\.(\d+)\.(\d+)", printed)
        if not found:
            raise ResticError(f"{self.program.binary} is not restic", "see RESTIC_BINARY")
        return tuple(map(int, found.groups()))


def named(point: RestorePoint, *tags: str) -> list[str]:
    """Return the arguments with host, time and tags of a snapshot.

    All snapshots of a restore point have the same time, that of the domain's snapshots, so that
    `restic forget` keeps or removes them together.
    """
    common = (TAG, f"run={point.run}", f"uuid={point.domain.uuid}", f"consistency={point.consistency.value}")
    attempt = (f"attempt={point.attempt}",) if point.attempt > 1 else ()
    locks = (f"{LOCK_TAG}{place}" for place in point.locks)
    return [
        f"--host={point.domain.name}",
        f"--time={point.taken:%Y-%m-%d %H:%M:%S}",
        *(f"--tag={encoded(tag)}" for tag in (*common, *attempt, *locks, *tags)),
    ]


def manifest_tags(point: RestorePoint) -> Sequence[str]:
    """Return the tags of the snapshot with the manifest."""
    return MANIFEST_TAG, f"node={point.host}"


def _locks_left(locks: Sequence[Lock]) -> ResticError:
    message = f"a killed restic left a lock, and restic cannot remove one of {len(locks)} locks"
    shown = ", ".join(map(str, locks))
    hint = "run `restic unlock --remove-all` while no other program uses the repository"
    return ResticError(f"{message}: {shown}", hint)
