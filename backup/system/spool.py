"""Bytes that may be too many for memory: small ones stay there, others are in an unnamed temporary file.

The file is in TMPDIR, or in /var/tmp, which unlike /tmp is on a disk everywhere (file-hierarchy(7)). It has
no name: nothing is left of it, however the process ends.
"""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Union

from ..stored import Packed

MEMORY_LIMIT = 4 << 20  # bytes of a spool that stay in memory
CHUNK = 1 << 20  # bytes at a time


class Spool:
    """Bytes that are written and read at any offset; what was skipped reads as zeros.

    Where no file can be written, as the disk is full, all stay in memory: the work matters more.
    """

    def __init__(self, content: bytes = b"") -> None:
        self._memory = bytearray(content)
        self._file = -1
        self._size = len(content)

    def __len__(self) -> int:
        return self._size

    def append(self, data: Union[bytes, bytearray, memoryview]) -> None:
        self.write(self._size, data)

    def write(self, offset: int, data: Union[bytes, bytearray, memoryview]) -> None:
        end = max(self._size, offset + len(data))
        if self._file < 0 and end > MEMORY_LIMIT >= self._size:
            self._move_to_file()
        if self._file >= 0:
            try:
                _write(self._file, offset, data)
            except OSError:
                self._move_to_memory()
        if self._file < 0:
            self._memory.extend(bytes(end - len(self._memory)))
            self._memory[offset : offset + len(data)] = data
        self._size = end

    def read(self, offset: int, length: int) -> bytes:
        if self._file < 0:
            return bytes(memoryview(self._memory)[offset : offset + length])
        return _read(self._file, offset, min(length, self._size - offset))

    @contextmanager
    def as_file(self) -> Iterator[int]:
        """Yield a descriptor of a file with all bytes, at its beginning, for a program's input."""
        descriptor = os.memfd_create("content") if self._file < 0 else os.dup(self._file)
        with os.fdopen(descriptor, "r+b", buffering=0):
            if self._file < 0:
                _write(descriptor, 0, self._memory)
            os.lseek(descriptor, 0, os.SEEK_SET)
            yield descriptor

    def _move_to_file(self) -> None:
        try:
            descriptor = _unnamed()
        except OSError:
            return
        weakref.finalize(self, os.close, descriptor)
        try:
            _write(descriptor, 0, self._memory)
        except OSError:
            return
        self._file, self._memory = descriptor, bytearray()

    def _move_to_memory(self) -> None:
        self._memory = bytearray(_read(self._file, 0, self._size))
        self._memory.extend(bytes(self._size - len(self._memory)))
        self._file = -1


class OpenFile:
    """A part of an open file, from an offset on; the file is closed with it. Satisfies Packed."""

    def __init__(self, file: IO[bytes], offset: int) -> None:
        self._file = file
        self._offset = offset
        self._size = max(0, os.fstat(file.fileno()).st_size - offset)
        weakref.finalize(self, file.close)

    def __len__(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        return _read(self._file.fileno(), self._offset + offset, min(length, self._size - offset))


class Part:
    """A part of packed bytes. Satisfies Packed."""

    def __init__(self, of: Packed, offset: int, length: int) -> None:
        self._of = of
        self._offset = offset
        self._length = length

    def __len__(self) -> int:
        return self._length

    def read(self, offset: int, length: int) -> bytes:
        return self._of.read(self._offset + offset, max(0, min(length, self._length - offset)))


class PackedFile(io.RawIOBase):
    """Packed bytes as a file: what tarfile takes. Written bytes go to the end of a spool."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self._packed = packed
        self._position = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return isinstance(self._packed, Spool)

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._packed)}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._packed.read(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: bytes) -> int:  # type: ignore[override]
        assert isinstance(self._packed, Spool)
        self._packed.write(self._position, data)
        self._position += len(data)
        return len(data)


def chunks(packed: Packed, size: int = CHUNK) -> Iterator[bytes]:
    """Yield all bytes, `size` at a time. Raises OSError."""
    for offset in range(0, len(packed), size):
        yield packed.read(offset, size)


def whole(packed: Packed) -> bytes:
    """Return all bytes: of what is known to be small. Raises OSError."""
    return packed.read(0, len(packed))


def _unnamed() -> int:
    """Open an unnamed temporary file. Raises OSError."""
    with tempfile.TemporaryFile(dir=os.environ.get("TMPDIR") or "/var/tmp", buffering=0) as file:
        return os.dup(file.fileno())


def _write(descriptor: int, offset: int, data: Union[bytes, bytearray, memoryview]) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, offset)
        left, offset = left[count:], offset + count


def _read(descriptor: int, offset: int, length: int) -> bytes:
    """Return these bytes, fewer only at the end of the file."""
    parts = []
    while length > 0 and (part := os.pread(descriptor, length, offset)):
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
