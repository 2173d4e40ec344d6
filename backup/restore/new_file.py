"""Restores an image to a file: raw and sparse, or qcow2 if the file name ends in .qcow2."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from ..errors import BackupError, reason
from ..protocols import WrittenBytes
from ..stored import SavedImage
from ..text import size_text
from .qemu_img import not_installed, qemu_img

RESTORING = ".restoring"  # suffix of the temporary name
INSTALL_HINT = "apt-get install qemu-utils, or name a file without .qcow2"
# Of file systems without hard links: exFAT, those of FUSE that have no call for them, SMB.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class FileWriter:
    """A file that is open for writing. Satisfies protocols.ImageWriter."""

    path: Path
    descriptor: int

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        """Write into the page cache; the kernel writes to the disk in the background."""
        left = memoryview(data)
        while left:
            with _errors("cannot write to", self.path):
                count = os.pwrite(self.descriptor, left, offset)
            left, offset = left[count:], offset + count
        return lambda: None


class NewFile:
    """A file as the destination of a restored image. Satisfies protocols.RestoreTarget."""

    def __init__(self, path: str, saved: SavedImage, force: bool) -> None:
        """`force`: replace an existing file."""
        self._path = Path(os.path.abspath(path))
        self._saved = saved
        self._force = force
        self._raw = self._path.with_name(self._path.name + RESTORING)
        self._qcow2 = self._path.with_name(f"{self._raw.name}.qcow2")
        self._converted = self._path.suffix == ".qcow2"
        self._undo = ExitStack()

    def __str__(self) -> str:
        return str(self._path)

    def require_free(self) -> None:
        """Raise BackupError unless the file may be created and its file system has room for it."""
        self._require_no_other()
        for left in (self._raw, self._qcow2):
            if os.path.lexists(left):
                raise _left_over(left)
        if self._converted and not shutil.which("qemu-img"):
            raise not_installed(INSTALL_HINT)
        directory = self._path.parent
        with _errors("cannot restore to", self._path):
            room = os.statvfs(directory)
        free = room.f_bavail * room.f_frsize
        needed = self._saved.data_bytes * (2 if self._converted else 1)
        if free < needed:
            message = (
                f"{directory} has room for {size_text(free)}, {self._path.name} needs {size_text(needed)}"
            )
            raise BackupError(message, "name a file on another file system")

    @contextmanager
    def opened(self, check_stop: Callable[[], None]) -> Iterator[FileWriter]:
        """Create the file under a temporary name, with the image's size, and open it for writing.

        After the block it is converted to qcow2 if wanted.
        """
        with _errors("cannot restore to", self._path):
            descriptor = self._made(self._raw)
            with os.fdopen(descriptor, "rb+"):
                os.ftruncate(descriptor, self._saved.size)
                yield FileWriter(self._raw, descriptor)
                os.fsync(descriptor)
            if self._converted:
                with os.fdopen(self._made(self._qcow2), "rb") as file:
                    self._convert(check_stop)
                    os.fsync(file.fileno())

    def commit(self) -> None:
        """Give the file its final name. Raises BackupError if that name has been taken meanwhile."""
        self._require_no_other()
        with _errors("cannot restore to", self._path):
            self._name(self._qcow2 if self._converted else self._raw)
            self._undo.close()

    def remove_replaced(self) -> None:
        """Do nothing: the replaced file is gone already."""

    def discard(self) -> None:
        """Remove the temporary files, unless committed; already gone counts as success."""
        self._undo.close()

    def _made(self, path: Path) -> int:
        """Create a new file and open it. `discard` removes it."""
        try:
            # 0600: it holds a guest's data
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise _left_over(path) from error
        self._undo.callback(path.unlink, missing_ok=True)
        return descriptor

    def _name(self, made: Path) -> None:
        """Rename it; without `force` by a hard link, which fails if the name has been taken meanwhile."""
        if self._force:
            os.replace(made, self._path)
            return
        try:
            os.link(made, self._path)
        except FileExistsError:
            self._require_no_other()
            raise
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.replace(made, self._path)

    def _require_no_other(self) -> None:
        with _errors("cannot restore to", self._path):
            try:
                regular = stat.S_ISREG(self._path.lstat().st_mode)
            except FileNotFoundError:
                return
        if not regular:
            raise BackupError(f"{self._path} exists and is not a regular file", "name a new file")
        if not self._force:
            raise BackupError(f"{self._path} exists", "name a new file, or --force replaces it")

    def _convert(self, check_stop: Callable[[], None]) -> None:
        # short options: it has no long ones for the formats before version 10
        options = ("convert", "-f", "raw", "-O", "qcow2", str(self._raw), str(self._qcow2))
        qemu_img(options, check_stop, INSTALL_HINT)


def _left_over(path: Path) -> BackupError:
    message = f"{path} exists: another restore is running or was killed"
    return BackupError(message, f"if no other restore is running: rm {path}")


@contextmanager
def _errors(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "check the free space and permissions of its directory"
        raise BackupError(f"{action} {path}: {reason(error)}", hint) from error
