"""A file that an image is restored to: raw and sparse, or qcow2 by its name's ending."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable

from ..errors import BackupError, reason
from ..protocols import WrittenBytes
from ..stored import SavedImage
from ..system.process import signal_when_parent_dies
from ..text import size_text

RESTORING = ".restoring"  # end of a name under which a file is filled
CONVERT_POLL = 0.2  # seconds between two looks at whether to stop
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP)  # of a file system that has none, such as exFAT


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
        self._undo = ExitStack()

    def __str__(self) -> str:
        return str(self._path)

    def require_free(self) -> None:
        """Raise BackupError unless the file may be made, and its file system has room for it."""
        self._require_no_other()
        for left in (self._raw, self._qcow2):
            if os.path.lexists(left):
                raise _left_over(left)
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
        """Make the file under a temporary name, of the image's size, and open it for writing.

        After the block it gets its form.
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
        """Give the file its name. Raises BackupError if that is another's by now."""
        self._require_no_other()
        with _errors("cannot restore to", self._path):
            self._name(self._qcow2 if self._converted else self._raw)
            self._undo.close()

    def remove_replaced(self) -> None:
        """Do nothing: what was there is gone already."""

    def discard(self) -> None:
        """Remove what was made, unless it was committed; already gone counts as success."""
        self._undo.close()

    def _made(self, path: Path) -> int:
        """Make a file, where there is none, and open it. It is removed in the end."""
        try:
            # 0600: it holds what a guest keeps to itself
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise _left_over(path) from error
        self._undo.callback(path.unlink, missing_ok=True)
        return descriptor

    def _name(self, made: Path) -> None:
        """Give it its name, which nobody else can have got since we looked."""
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
            raise BackupError(f"{self._path} exists, and is no file", "name a new file")
        if not self._force:
            raise BackupError(f"{self._path} exists", "name a new file, or --force replaces it")

    def _convert(self, check_stop: Callable[[], None]) -> None:
        command = ("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(self._raw), str(self._qcow2))
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                preexec_fn=partial(_in_child, os.getpid()),
            )
        except FileNotFoundError as error:
            raise BackupError("there is no qemu-img", "apt-get install qemu-utils") from error
        with process:
            try:
                words = _last_words(process, check_stop)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise BackupError(f"qemu-img failed with exit code {process.returncode}: {words}")


def _left_over(path: Path) -> BackupError:
    message = f"{path} exists: another restore is under way, or was killed"
    return BackupError(message, f"if no other is at work on it: rm {path}")


def _in_child(parent: int) -> None:
    os.setpgid(0, 0)  # a terminal's Ctrl-C is for us: we end it then
    signal_when_parent_dies(signal.SIGTERM, parent)


def _last_words(process: subprocess.Popen[bytes], check_stop: Callable[[], None]) -> str:
    """Wait for its end, and give what it says on its standard error."""
    while True:
        try:
            return process.communicate(timeout=CONVERT_POLL)[1].decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            check_stop()


@contextmanager
def _errors(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupError(
            f"{action} {path}: {reason(error)}", "is there room, and may it be written?"
        ) from error
