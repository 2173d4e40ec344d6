"""Reads files below a directory that restic serves, and the images that they make up, at any offset."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Callable

from backup.errors import BackupError, reason

from ..segments.archive import UNSOUND
from ..segments.layout import HOLES, PER_DIRECTORY, Segments


class MountedFiles:
    """Opens and reads files. `errors` returns what restic has printed as errors."""

    def __init__(self, directory: int, errors: Callable[[], str]) -> None:
        """`directory` is a descriptor, which `close` closes."""
        self._directory = directory
        self._errors = errors
        self._open = [directory]

    def opened(self, path: str, size: int | None = None) -> int:
        """Open a file, which must have this size in bytes. Raises BackupError."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
            found = os.fstat(descriptor).st_size
        except OSError as error:
            raise self._error(path, error) from error
        if size is not None and found != size:
            os.close(descriptor)
            message = f"the repository has {path} with {found} bytes, but its manifest has {size}"
            raise BackupError(message, UNSOUND)
        return descriptor

    def links_to(self, path: str, target: str) -> bool:
        """Return whether a path is a symbolic link with this content. Raises BackupError."""
        try:
            return os.readlink(path, dir_fd=self._directory) == target
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

    def whole(self, path: str) -> bytes:
        """Return a file's content. Raises BackupError."""
        descriptor = self.opened(path)
        try:
            return self.read(descriptor, path, 0, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        while self._open:
            with suppress(OSError):  # restic has ended
                os.close(self._open.pop())

    def _error(self, path: str, error: OSError) -> BackupError:
        printed = self._errors()
        message = f"cannot read {path} from the repository: {reason(error)}"
        return BackupError(f"{message}: {printed}" if printed else message, UNSOUND)


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
        """Read from one segment; a link to the file of zeros has its length too."""
        subdirectory = number // PER_DIRECTORY
        if subdirectory not in self._linked:  # by several threads, with the same result
            path = f"{self._directory}/{self._segments.subdirectory(subdirectory)}"
            found = self._segments.can_be_linked(subdirectory) and self._files.links_to(path, HOLES)
            self._linked[subdirectory] = found
        if self._linked[subdirectory]:
            return bytes(length)
        path = f"{self._directory}/{self._segments.path(number)}"
        descriptor = self._files.opened(path, self._segments.extent(number).length)
        try:
            return self._files.read(descriptor, path, offset, length)
        finally:
            os.close(descriptor)
