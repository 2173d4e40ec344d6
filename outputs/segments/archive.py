"""An image's bytes out of the archive that restic makes of its segments."""

from __future__ import annotations

import tarfile

from backup.errors import BackupError
from backup.system.pipe_reader import PipeReader

from .layout import ZEROS, ZEROS_LINK, Segments

SKIP = 1 << 20  # bytes at a time
UNSOUND = "another restore point may do; see restic check --read-data"


class SegmentSource:
    """Reads the segments' bytes, one segment after the other. `received` counts them.

    `restic dump` of a directory gives a tar with its files in the order of their names. Satisfies
    backup.protocols.Source.
    """

    def __init__(self, archive: PipeReader, segments: Segments) -> None:
        self.received = 0
        self._archive = archive
        self._segments = segments
        self._next = 0  # segment
        self._left = 0  # bytes of the one before it
        self._padding = 0  # bytes after it
        self._hole = False  # it is a link to the zeros

    def fill(self, buffer: memoryview) -> int:
        """Fill the buffer and return its length, or less where there is no more. Raises BackupError."""
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
        """Go to the next segment's first byte. Raises BackupError if the archive has another file there."""
        self._skip(self._padding)
        while entry := self._entry():
            size = -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            name = entry.name.strip("/")
            zeros = name == f"{self._segments.directory}/{ZEROS}"
            if zeros or not (entry.isreg() or entry.issym()):  # a directory, what a header has no room for
                self._skip(size)
                continue
            self._require(entry, name)
            length = self._segments.extent(self._next).length
            self._next += 1
            self._hole = entry.issym()
            self._left, self._padding = length, 0 if self._hole else size - length
            return True
        self._padding = 0
        return False

    def _require(self, entry: tarfile.TarInfo, name: str) -> None:
        """Raise BackupError unless it is the next segment."""
        if self._next == len(self._segments):
            raise BackupError(f"the output gave a file too many: {entry.name}", UNSOUND)
        expected, length = self._segments.path(self._next), self._segments.extent(self._next).length
        hole = entry.issym() and entry.linkname == ZEROS_LINK and self._segments.can_be_link(self._next)
        if name != expected or not (hole or (entry.isreg() and entry.size == length)):
            message = f"the output gave {entry.name} of {entry.size} bytes, not {expected} of {length}"
            raise BackupError(message, UNSOUND)

    def _entry(self) -> tarfile.TarInfo | None:
        block = bytearray(tarfile.BLOCKSIZE)
        if self._archive.fill(memoryview(block)) < len(block) or not any(block):
            while self._archive.fill(memoryview(block)):  # or restic could not end
                pass
            return None
        try:
            return tarfile.TarInfo.frombuf(bytes(block), tarfile.ENCODING, "surrogateescape")
        except tarfile.HeaderError as error:
            raise BackupError(f"the output gave no archive: {error}", UNSOUND) from error

    def _skip(self, length: int) -> None:
        while length:
            length -= self._archive.fill(memoryview(bytearray(min(length, SKIP)))) or length


def _zeroed(buffer: memoryview) -> int:
    buffer[:] = bytes(len(buffer))
    return len(buffer)
