"""A file that an image is restored to: raw and sparse, or qcow2 by its name's ending."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .errors import BackupError, reason
from .model import SavedImage
from .protocols import WrittenBytes
from .units import size_text

RESTORING = ".restoring"  # end of a name under which a file is filled
CONVERT_LIMIT = 24 * 3600  # seconds for qemu-img; a large file on a slow disk


@dataclass(frozen=True)
class FileWriter:
    """A file that is open for writing. Satisfies protocols.ImageWriter."""

    path: Path
    descriptor: int

    def start_write(self, offset: int, data: WrittenBytes) -> Callable[[], None]:
        """Write; the kernel goes on with it while the next bytes are waited for."""
        left = memoryview(data)
        while left:
            with _errors("cannot write to", self.path):
                count = os.pwrite(self.descriptor, left, offset)
            left, offset = left[count:], offset + count
        return lambda: None


class NewFile:
    """A saved image on its way into a file. Satisfies protocols.RestoreTarget."""

    def __init__(self, path: str, saved: SavedImage, force: bool) -> None:
        """`force`: take the place of a file."""
        self._path = Path(os.path.abspath(path))
        self._saved = saved
        self._force = force
        self._raw = self._path.with_name(self._path.name + RESTORING)
        self._qcow2 = self._path.with_name(f"{self._raw.name}.qcow2")
        self._converted = self._path.suffix == ".qcow2"
        self._begun = False

    def __str__(self) -> str:
        return str(self._path)

    def require_free(self) -> None:
        """Raise BackupError unless the file may be made, and its file system has room for it."""
        self._require_no_other()
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
    def opened(self) -> Iterator[FileWriter]:
        """Make the file under a temporary name, of the image's size, and open it for writing."""
        self._begun = True
        with _errors("cannot restore to", self._path):
            # 0600: it holds what a guest keeps to itself
            descriptor = os.open(self._raw, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "rb+"):
                os.ftruncate(descriptor, self._saved.size)
                yield FileWriter(self._raw, descriptor)
                os.fsync(descriptor)

    def commit(self) -> None:
        """Give the file its form and its name. Raises BackupError if the name is another's by now."""
        self._require_no_other()
        if self._converted:
            self._convert()
        with _errors("cannot restore to", self._path):
            os.replace(self._qcow2 if self._converted else self._raw, self._path)
            if self._converted:
                self._raw.unlink()
        self._begun = False

    def keep(self) -> None:
        """Do nothing: its name replaced what was there."""

    def discard(self) -> None:
        """Remove what was made, unless it was committed; already gone counts as success."""
        if self._begun:
            self._raw.unlink(missing_ok=True)
            self._qcow2.unlink(missing_ok=True)

    def _require_no_other(self) -> None:
        with _errors("cannot restore to", self._path):
            try:
                regular = stat.S_ISREG(self._path.lstat().st_mode)
            except FileNotFoundError:
                return
        if not regular:
            raise BackupError(f"{self._path} exists, and is no file", "name a new file")
        if not self._force:
            raise BackupError(f"{self._path} exists", "name a new file, or --force replaces it")

    def _convert(self) -> None:
        with _errors("cannot restore to", self._path):  # qemu-img would make one that others may read
            os.close(os.open(self._qcow2, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        command = ("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(self._raw), str(self._qcow2))
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=CONVERT_LIMIT
            )
        except FileNotFoundError as error:
            raise BackupError("there is no qemu-img", "apt-get install qemu-utils") from error
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()
            raise BackupError(f"qemu-img failed with exit code {done.returncode}: {words}")


@contextmanager
def _errors(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupError(
            f"{action} {path}: {reason(error)}", "is there room, and may it be written?"
        ) from error
