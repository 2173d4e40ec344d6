"""Reads an image's bytes from the tar archive of its segments that restic writes."""

from __future__ import annotations

import tarfile

from backup.errors import BackupError
from backup.system.pipe_reader import PipeReader

from .layout import HOLES, PER_DIRECTORY, ZEROS, ZEROS_LINK, Segments

SKIP = 1 << 20  # bytes at a time
UNSOUND = "run `restic check --read-data`; another restore point may be undamaged"


class SegmentSource:
    """Reads the segments' bytes, one segment after the other. `received` counts them.

    `restic dump` of a directory writes a tar with its files in the order of their names. Satisfies
    backup.protocols.Source.
    """

    def __init__(self, archive: PipeReader, segments: Segments) -> None:
        self.received = 0
        self._archive = archive
        self._segments = segments
        self._next = 0  # the next segment's number
        self._left = 0  # bytes left of the current one
        self._padding = 0  # bytes after it
        self._hole = False  # whether it is a link to the file of zeros

    def fill(self, buffer: memoryview) -> int:
        """Fill the buffer and return the number of bytes, fewer only at the end. Raises BackupError."""
        filled = 0
        while filled < len(buffer):
            if not self._left and not self._begin_segment():
                break
            wanted = buffer[filled : filled + self._left]
            got = _zeroed(wanted) if self._hole else self._archive.fill(wanted)
            self._left -= got
            filled += got
            if got < len(wanted):
                break
        self.received += filled
        return filled

    def _begin_segment(self) -> bool:
        """Go to the next segment's first byte. Raises BackupError if another file is there."""
        self._skip(self._padding)
        while entry := self._entry():
            size = -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            name = entry.name.strip("/")
            if self._leads_nowhere(entry, name):
                self._skip(size)
                continue
            count = self._linked_segments(entry, name)
            if not count:
                self._require(entry, name)
            length = sum(self._segments.extent(self._next + one).length for one in range(count or 1))
            self._next += count or 1
            self._hole = entry.issym()
            self._left, self._padding = length, 0 if self._hole else size - length
            return True
        self._padding = 0
        return False

    def _leads_nowhere(self, entry: tarfile.TarInfo, name: str) -> bool:
        """Return whether an entry is no part of the image: what links lead to, a directory, a header."""
        directory = self._segments.directory
        special = name == f"{directory}/{ZEROS}" or name.startswith(f"{directory}/{HOLES}/")
        return special or not (entry.isreg() or entry.issym())

    def _linked_segments(self, entry: tarfile.TarInfo, name: str) -> int:
        """Return how many segments a link in place of a subdirectory of holes stands for; 0 if it is none."""
        number, first = divmod(self._next, PER_DIRECTORY)
        expected = name == self._segments.subdirectory(number) and not first
        linked = expected and entry.issym() and entry.linkname == HOLES
        return PER_DIRECTORY if linked and self._segments.can_be_linked(number) else 0

    def _require(self, entry: tarfile.TarInfo, name: str) -> None:
        """Raise BackupError unless the entry is the next segment."""
        if self._next == len(self._segments):
            raise BackupError(f"unexpected file in the repository: {entry.name}", UNSOUND)
        expected, length = self._segments.path(self._next), self._segments.extent(self._next).length
        hole = entry.issym() and entry.linkname == ZEROS_LINK and self._segments.can_be_link(self._next)
        if name != expected or not (hole or (entry.isreg() and entry.size == length)):
            message = (
                f"the repository has {entry.name} ({entry.size} bytes) instead of {expected} ({length} bytes)"
            )
            raise BackupError(message, UNSOUND)

    def _entry(self) -> tarfile.TarInfo | None:
        block = bytearray(tarfile.BLOCKSIZE)
        if self._archive.fill(memoryview(block)) < len(block) or not any(block):
            while self._archive.fill(memoryview(block)):  # restic ends only when all is read
                pass
            return None
        try:
            return tarfile.TarInfo.frombuf(bytes(block), tarfile.ENCODING, "surrogateescape")
        except tarfile.HeaderError as error:
            raise BackupError(f"the archive from the repository is damaged: {error}", UNSOUND) from error

    def _skip(self, length: int) -> None:
        while length:
            length -= self._archive.fill(memoryview(bytearray(min(length, SKIP)))) or length


def _zeroed(buffer: memoryview) -> int:
    buffer[:] = bytes(len(buffer))
    return len(buffer)
