"""A restore point in a `restic mount`, where its images are read at any offset.

The mount is in a private namespace: nobody else sees it, and it ends with restic and this process.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, TypeVar

from backup.errors import NotPossibleHere, reason
from backup.protocols import RandomAccess
from backup.stored import SavedImage, StoredPoint
from backup.system.mounts import unshare_mounts
from backup.system.own_thread import in_own_thread
from backup.system.private_directory import make_private
from backup.system.spool import Spool
from backup.system.time_limit import CheckStop, within

from ..segments.layout import Segments
from .child import Child
from .messages import MountEnded, ResticError, is_damage, without_snapshots
from .mounted_files import MountedFiles, SegmentedImage, WholeImage
from .program import SNAPSHOTS, Program
from .snapshots import TAG, encoded, file_name, manifest_file

MOUNTPOINT = "repository"  # in RUNTIME_DIR
START_POLL = 0.02  # seconds between two checks whether restic serves its mount
CLOSE_LIMIT = 2.0  # seconds for a restic that may be stopped to close its files

Result = TypeVar("Result")


@contextmanager
def opened_point(program: Program, point: StoredPoint, check_stop: CheckStop) -> Iterator[MountedPoint]:
    """Mount a restore point's snapshots during the block. Raises BackupError."""
    # the thread lives as long as restic: the kernel interrupts restic when it ends
    with in_own_thread(_mounted(program, point, check_stop)) as opened:
        yield opened


@contextmanager
def _mounted(program: Program, point: StoredPoint, check_stop: CheckStop) -> Iterator[MountedPoint]:
    directory = _private_mountpoint(program.runtime_dir)
    tags = ",".join((TAG, *map(encoded, (f"run={point.id.run}", f"uuid={point.id.uuid}"))))
    with program.mount(directory, tags, check_stop) as child:
        limited = _Limited(program.call_limit, check_stop, partial(program.last_errors, child))
        snapshots = limited.call(partial(_snapshots, f"{directory}/{SNAPSHOTS}", child))
        child.serves = True
        files = MountedFiles(snapshots, partial(program.last_errors, child))
        try:
            yield MountedPoint(point, child, files, limited)
        finally:
            with suppress(TimeoutError):  # then restic is killed, and the mount ends anyway
                within(CLOSE_LIMIT, files.close)


def _private_mountpoint(runtime_dir: str) -> str:
    """Make a directory; give this thread a namespace of its own to mount there. Raises NotPossibleHere."""
    if not (shutil.which("fusermount3") or shutil.which("fusermount")):
        message = "fusermount3 is not installed, which restic mount needs"
        raise NotPossibleHere(message, "apt-get install fuse3")
    directory = Path(runtime_dir, MOUNTPOINT)
    try:
        make_private(directory)
        with open("/dev/fuse", "rb"):
            pass
    except OSError as error:
        hint = "run it as root; modprobe fuse; a container needs the device"
        raise NotPossibleHere(f"cannot open {error.filename}: {reason(error)}", hint) from error
    try:
        unshare_mounts()
    except OSError as error:
        message = f"cannot create a private mount namespace: {reason(error)}"
        raise NotPossibleHere(message, "run it as root with CAP_SYS_ADMIN") from error
    return str(directory)


def _snapshots(path: str, child: Child) -> int:
    """Wait until restic serves this directory, and open it. Raises MountEnded."""
    while child.runs:
        with suppress(OSError):  # not mounted yet, or not any more
            return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        time.sleep(START_POLL)
    raise MountEnded("restic mount has ended")


@dataclass(frozen=True)
class _Limited:
    """Calls with a time limit in seconds, as a file system may not answer. `errors`: see MountedFiles."""

    limit: float
    check_stop: CheckStop
    errors: Callable[[], str]

    def call(self, call: Callable[[], Result]) -> Result:
        """Return what it returns. Raises ResticError."""
        try:
            return within(self.limit, call, self.check_stop)
        except TimeoutError as error:
            printed = self.errors()
            message = f"restic mount did not answer within {self.limit:.0f} s"
            message += f": {printed}" if printed else ""
            hint = "is the repository's host reachable? see OUTPUT_STALL_TIMEOUT"
            raise ResticError(message, hint, transient=True) from error


@dataclass(frozen=True)
class MountedPoint:
    """A restore point whose snapshots are mounted. Satisfies backup.protocols.OpenedPoint."""

    point: StoredPoint
    child: Child
    files: MountedFiles
    limited: _Limited

    def manifest(self) -> Spool:
        path = f"{self.point.manifest_id}/{manifest_file(self.point)}"
        return self.limited.call(partial(self.files.whole, path))

    def image(self, image: SavedImage) -> RandomAccess:
        if image.segment_size:
            segments = Segments(image.target, image.size, image.segment_size)
            return SegmentedImage(self.files, image.restore_id, segments)
        path = f"{image.restore_id}/{file_name(image.target)}"
        return self.limited.call(partial(WholeImage, self.files, path, image.size))

    def check(self) -> None:
        if not self.child.runs:
            raise MountEnded("restic mount has ended")

    def damage(self) -> str:
        printed = without_snapshots(self.limited.errors())  # the snapshots of this point are there
        return printed if is_damage(printed) else ""
