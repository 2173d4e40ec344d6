"""Reads files below a directory that restic serves, and the images that they make up, at any offset.

No symbolic link is followed: one in a snapshot that was made by hand could lead to a file of this node.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Callable

from backup.errors import BackupError, reason
from backup.system.spool import CHUNK, Spool

from ..segments.archive import UNSOUND
from ..segments.layout import HOLES, PER_DIRECTORY, ZEROS_LINK, Segments

DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe is not waited for


class MountedFiles:
    """Opens and reads files. `errors` returns what restic has printed as errors."""

    def __init__(self, directory: int, errors: Callable[[], str]) -> None:
        """`directory` is a descriptor, which `close` closes."""
        self._directory = directory
        self._errors = errors
        self._open = [directory]

    def opened(self, path: str, size: int | None = None) -> int:
        """Open a plain file, which must have this size in bytes. Raises BackupError."""
        try:
            with self._directory_of(path) as (directory, name):
                descriptor = os.open(name, FILE, dir_fd=directory)
            found = os.fstat(descriptor)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _no_plain_file(path) from error
            raise self._error(path, error) from error
        if not stat.S_ISREG(found.st_mode):
            _close(descriptor)
            raise _no_plain_file(path)
        if size is not None and found.st_size != size:
            _close(descriptor)
            message = f"the repository has {path} with {found.st_size} bytes, but its manifest has {size}"
            raise BackupError(message, UNSOUND)
        return descriptor

    def links_to(self, path: str, target: str) -> bool:
        """Return whether a path is a symbolic link with this content. Raises BackupError."""
        try:
            with self._directory_of(path) as (directory, name):
                return os.readlink(name, dir_fd=directory) == target
        except OSError as error:
            if error.errno == errno.EINVAL:  # no link
                return False
            raise self._error(path, error) from error

    def opened_until_close(self, path: str, size: int) -> int:
        """Open a file that stays open until `close`."""
        self._open.append(self.opened(path, size))
        return self._open[-1]

    def read(self, descriptor: int, path: str, offset: int, length: int) -> bytes:
        """Return exactly these bytes of an open file. Raises BackupError."""
        parts, end = [], offset + length
        while offset < end:
            try:
                part = os.pread(descriptor, end - offset, offset)
            except OSError as error:
                raise self._error(path, error) from error
            if not part:
                raise BackupError(f"the repository's {path} ends at {offset}, before {end}", UNSOUND)
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def whole(self, path: str) -> Spool:
        """Return a file's content, which may be too much for memory. Raises BackupError."""
        descriptor, content = self.opened(path), Spool()
        try:
            size = os.fstat(descriptor).st_size
            for offset in range(0, size, CHUNK):
                content.append(self.read(descriptor, path, offset, min(CHUNK, size - offset)))
            return content
        finally:
            _close(descriptor)

    def close(self) -> None:
        while self._open:
            _close(self._open.pop())

    @contextmanager
    def _directory_of(self, path: str) -> Iterator[tuple[int, str]]:
        """Open the directory of a path; yield it, and the last name. Raises OSError."""
        *directories, name = filter(None, path.split("/"))  # also of a path that begins with /
        with ExitStack() as stack:
            here = self._directory
            for one in directories:
                here = os.open(_downward(one), DIRECTORY, dir_fd=here)
                stack.callback(_close, here)
            yield here, _downward(name)

    def _error(self, path: str, error: OSError) -> BackupError:
        printed = self._errors()
        message = f"cannot read {path} from the repository: {reason(error)}"
        return BackupError(f"{message}: {printed}" if printed else message, UNSOUND)


def _close(descriptor: int) -> None:
    """Close a file that was read: where restic has just ended, the kernel has an error for it."""
    with suppress(OSError):
        os.close(descriptor)


def _downward(name: str) -> str:
    """Return a name that leads to no directory above. Raises OSError."""
    if name in (".", ".."):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return name


def _no_plain_file(path: str) -> BackupError:
    hint = "no backup has made that: who else can write to the repository? another restore point may be sound"
    return BackupError(f"the repository's {path} is no plain file", hint)


class WholeImage:
    """An image in one file. Satisfies backup.protocols.RandomAccess."""

    def __init__(self, files: MountedFiles, path: str, size: int) -> None:
        self._files = files
        self._path = path
        self._descriptor = files.opened_until_close(path, size)

    def read(self, offset: int, length: int) -> bytes:
        return self._files.read(self._descriptor, self._path, offset, length)


class SegmentedImage:
    """An image in segments below a directory. Satisfies backup.protocols.RandomAccess."""

    def __init__(self, files: MountedFiles, directory: str, segments: Segments) -> None:
        self._files = files
        self._directory = directory
        self._segments = segments
        self._linked: dict[int, bool] = {}  # by the numbers of subdirectories

    def read(self, offset: int, length: int) -> bytes:
        """Read its part from each of the segments that have one."""
        parts, end = [], offset + length
        while offset < end:
            number = offset // self._segments.segment_size
            segment = self._segments.extent(number)
            part = min(end, segment.offset + segment.length) - offset
            parts.append(self._part(number, offset - segment.offset, part))
            offset += part
        return b"".join(parts)

    def _part(self, number: int, offset: int, length: int) -> bytes:
        """Read from one segment; a link to the file of zeros stands for its zeros."""
        subdirectory = number // PER_DIRECTORY
        if subdirectory not in self._linked:  # by several threads, with the same result
            path = f"{self._directory}/{self._segments.subdirectory(subdirectory)}"
            found = self._segments.can_be_linked(subdirectory) and self._files.links_to(path, HOLES)
            self._linked[subdirectory] = found
        if self._linked[subdirectory]:
            return bytes(length)
        path = f"{self._directory}/{self._segments.path(number)}"
        if self._segments.can_be_link(number) and self._files.links_to(path, ZEROS_LINK):
            return bytes(length)
        descriptor = self._files.opened(path, self._segments.extent(number).length)
        try:
            return self._files.read(descriptor, path, offset, length)
        finally:
            _close(descriptor)
