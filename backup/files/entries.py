"""What all file systems of guests have in common: entries, and ways to read them."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Optional, Protocol

from ..errors import BackupError
from .session import UNSOUND

SPECIAL = (stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK)
COPIED = (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK)
MOST_ENTRIES = 1_200_000  # in memory at a time: some 220 MiB


class NotFound(BackupError):
    """The path does not exist in this file system."""


@dataclass(frozen=True)
class Entry:
    """A file, directory or link. `mode` is as in stat(2), `size` in bytes."""

    __slots__ = ("group", "inode", "mode", "name", "owner", "size")  # there may be MOST_ENTRIES of them
    inode: int
    mode: int
    owner: int
    group: int
    name: bytes
    size: int

    @property
    def identity(self) -> tuple[int, int]:
        """What tells it from all others of its file system."""
        return 0, self.inode

    @property
    def unread(self) -> Optional[BackupError]:
        """Why it cannot be read, as its inode was zeroed, or overwritten; None if it is of a known type."""
        if stat.S_IFMT(self.mode) in (*COPIED, *SPECIAL):
            return None
        return BackupError(f"its inode is damaged: it has the unknown mode {self.mode:06o}", UNSOUND)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


@dataclass(frozen=True)
class Unread(Entry):
    """Stands for those entries of a directory that cannot be read, and has no name. `error` is why."""

    error: BackupError

    @property
    def unread(self) -> BackupError:
        return self.error


class GuestFiles(Protocol):
    """The files of a file system. All that it returns was chosen by a guest, which may be hostile."""

    def find(self, path: bytes) -> Entry:
        """Return what a path leads to, over links as in the guest; b"/" is the name of the root.

        Raises NotFound, BackupError.
        """

    def entries(self, directory: Entry) -> Sequence[Entry]:
        """Return what a directory has, sorted by name; no name has a slash.

        What cannot be read is an Unread at the end. Raises BackupError if nothing can be read.
        """

    def content(self, file: Entry) -> Iterator[bytes]:
        """Yield a file's bytes. Raises BackupError."""

    def link_target(self, link: Entry) -> bytes:
        """Return what a symbolic link has as its target. Raises BackupError."""

    def changed(self, entry: Entry) -> int:
        """Return the time of the last change of its content, in seconds since 1970. Raises BackupError."""


class Systems(Protocol):
    """File systems of guests, by their names: vda, vda1, or group/volume of LVM."""

    @property
    def names(self) -> Sequence[str]: ...

    def opened(self, name: str) -> AbstractContextManager[GuestFiles]:
        """Open one of them during the block. Raises BackupError."""


def shown(path: bytes) -> str:
    """Return a path for a message."""
    return path.decode(errors="backslashreplace")
