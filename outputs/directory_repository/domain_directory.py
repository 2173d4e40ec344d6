"""The directory of one domain: all that is changed in the repository, but for the bytes of disks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from backup.restore.qemu_img import qemu_img
from backup.stored import Packed
from backup.system.atomic_file import write_atomically
from backup.system.spool import chunks

from ..own_points.entry import Entry
from ..own_points.run_names import point_id
from .errors import named_errors
from .names import ENTRY, MANIFEST, of_partial, partial_name, target_of


@dataclass(frozen=True)
class DomainDirectory:
    """`root` is DIRECTORY_OUTPUT. `point` is the name of a restore point. All methods raise BackupError.

    What a method has changed survives a power cut.
    """

    root: Path
    uuid: str

    @property
    def path(self) -> Path:
        return self.root / self.uuid

    def partial(self, point: str) -> Path:
        return self.path / partial_name(point)

    def final(self, point: str) -> Path:
        return self.path / point

    def points(self) -> Sequence[str]:
        """Return the names of the restore points with a directory of their final name, oldest first."""
        return sorted(name for name in self._names() if point_id(self.uuid, name))

    def partials(self) -> Sequence[str]:
        """Return the names of the restore points with a directory that is not complete."""
        found = (of_partial(name) for name in self._names())
        return sorted(name for name in found if name and point_id(self.uuid, name))

    def exists(self) -> bool:
        with named_errors("read", self.path):
            return _exists(self.path)

    def file(self, point: str, name: str) -> Path:
        """Return the path of a file, also if the restore point is not complete yet."""
        with named_errors("read", path := self.partial(point) / name):
            return path if _exists(path) else self.final(point) / name

    def counts(self, point: str) -> bool:
        with named_errors("read", path := self.final(point) / MANIFEST):
            return _exists(path)

    def create(self) -> None:
        with named_errors("create", self.path):
            if not self.path.exists():
                self.path.mkdir(mode=0o700, exist_ok=True)
                sync(self.root)

    def begin(self, point: str) -> None:
        """Create the directory of a restore point, which does not count yet."""
        with named_errors("create", path := self.partial(point)):
            path.mkdir(mode=0o700)
            sync(self.path)

    def write_entry(self, point: str, entry: Entry) -> None:
        with named_errors("write", path := self.partial(point) / ENTRY):
            write_atomically(path, entry.packed().encode())

    def write_manifest(self, point: str, packed: Packed) -> None:
        with named_errors("write", path := self.partial(point) / MANIFEST):
            write_atomically(path, chunks(packed))

    def commit(self, point: str) -> None:
        """Give a restore point its final name: from now on it counts. All of its files are on the disk."""
        with named_errors("rename", path := self.partial(point)):
            sync(path)
            path.rename(self.final(point))
            sync(self.path)

    def remove_partial(self, point: str) -> None:
        """Remove what was not completed, its entry last: that has the locks of its run."""
        with named_errors("remove", path := self.partial(point)):
            _remove_all(path)

    def remove_manifest(self, point: str) -> None:
        """From now on the restore point does not count."""
        with named_errors("remove", path := self.final(point) / MANIFEST):
            path.unlink(missing_ok=True)
            sync(path.parent)

    def remove_file(self, path: Path) -> None:
        with named_errors("remove", path):
            path.unlink(missing_ok=True)
            sync(path.parent)

    def remove_point(self, point: str) -> None:
        """Remove a directory without images."""
        with named_errors("remove", path := self.final(point)):
            _remove_all(path)

    def remove_if_empty(self, lock: Path) -> None:
        """Remove the domain's directory if there is nothing but the lock that we hold."""
        with named_errors("remove", self.path):
            if self._names() == [lock.name]:
                lock.unlink()
                self.path.rmdir()

    def commit_into(self, base: Path, top: Path, size: int, check_stop: Callable[[], None]) -> None:
        """Write what `top`, of `size` bytes, has of its own into its backing file; it stays as it is.

        Whoever reads `top`, or what builds on it, sees the same at any moment, also after a kill: `top` has
        all that is written.
        """
        qemu_img(("resize", "-q", "-f", "qcow2", "--shrink", str(base), str(size)), check_stop)
        qemu_img(("commit", "-q", "-d", "-f", "qcow2", str(top)), check_stop)

    def replace(self, base: Path, top: Path) -> None:
        """Put a backing file, which has the content of `top`, in the place of it."""
        with named_errors("replace", top):
            sync(base)
            os.replace(base, top)
            for directory in (top.parent, base.parent):
                sync(directory)

    def images(self, directory: Path) -> Sequence[Path]:
        """List the files of disks in the directory of a restore point, none if that is gone."""
        with named_errors("read", directory):
            return [directory / name for name in sorted(_listed(directory)) if target_of(name)]

    def _names(self) -> Sequence[str]:
        with named_errors("read", self.path):
            return _listed(self.path)


def sync(path: Path) -> None:
    """Wait until a file's data, or a directory's names, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(path: Path) -> bool:
    """Return whether a file exists; Path.exists takes some errors of a file server for no. Raises OSError."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _listed(directory: Path) -> Sequence[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return ()


def _remove_all(directory: Path) -> None:
    for name in sorted(_listed(directory), key=lambda name: name == ENTRY):
        (directory / name).unlink(missing_ok=True)
    if directory.exists():
        shutil.rmtree(directory)
        sync(directory.parent)
