"""The files of a restore point that is shown: its disks, and texts that describe it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .blocks import Data


class Content(Protocol):
    """What a file consists of."""

    @property
    def size(self) -> int: ...

    def is_there(self, offset: int, length: int) -> bool:
        """Return whether `read` returns at once."""

    def read(self, offset: int, length: int) -> Data:
        """Return these bytes, fewer only at the end. Raises BackupError."""


@dataclass(frozen=True)
class File:
    """A file; `data_bytes` is what it occupies, less than its size if it has holes."""

    name: str
    content: Content
    data_bytes: int


@dataclass(frozen=True)
class Text:
    """A small file's content. Satisfies Content."""

    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def is_there(self, offset: int, length: int) -> bool:
        return True

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]
