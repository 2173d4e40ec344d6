"""Copies files and directories of a guest into a directory of this node.

The guest may be hostile: nothing is written outside of the directory, no link leads out of it, and there are
no devices, pipes, owners or set-user-ID bits.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Callable

from ..errors import BackupError, reason
from ..model import Level
from ..protocols import Reporter
from ..text import size_text
from .entries import MOST_ENTRIES, Entry, GuestFiles
from .session import UNSOUND, SessionEnded

DEPTH = 200  # directories within each other: each costs an open file
PERMISSIONS = 0o777  # the bits of a mode that are copied
OWN = 0o700  # what a directory always has, so that it can be filled, and removed again
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
LEADS_OUT = "a link that leads out of what is copied"
SPECIAL = "a device, pipe or socket"


@dataclass
class Copied:
    """What was copied; `failed` could not be, and `left_out` is on purpose: numbers by reason.

    `ended`: with a failure after which nothing more could be copied.
    """

    files: int = 0
    directories: int = 0
    links: int = 0
    bytes: int = 0
    failed: int = 0
    ended: bool = False
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass
class CopyOut:
    """Copies from a file system. `domain` is for messages."""

    files: GuestFiles
    domain: str
    reporter: Reporter
    check_stop: Callable[[], None]
    copied: Copied = field(default_factory=Copied)
    _in_memory: int = 0  # entries of the directories that are being copied
    _directories: set[tuple[int, int]] = field(default_factory=set)

    def copy(self, entry: Entry, directory: str) -> Copied:
        """Copy a file or directory into an existing directory; the root's entries if it is the root.

        What cannot be read or written is reported and counted. Raises BackupError if nothing can be.
        """
        with _write_errors(ends=True):
            parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if entry.name == b"/":
                self._fill(entry, parent, b"", 0)
            else:
                self._one(entry, parent, entry.name, -1)
        except (NoRoom, SessionEnded):
            if not self.copied.ended:  # before anything was copied
                raise
        finally:
            os.close(parent)
        for what, number in self.copied.left_out.items():
            text = f"left out {what}, {number} time{'s' if number > 1 else ''}"
            self.reporter.message(Level.WARNING, self.domain, text)
        return self.copied

    def _one(self, entry: Entry, parent: int, path: bytes, depth: int) -> None:
        """Copy an entry. `parent` is an open directory, `depth` levels below what no link may leave."""
        self.check_stop()
        with self._failures_reported(path or b"/"):
            if entry.unread:
                raise entry.unread
            if entry.is_directory:
                self._directory(entry, parent, path, depth)
            elif entry.is_file:
                self._file(entry, parent)
            elif entry.is_link:
                self._link(entry, parent, path, depth)
            else:
                self._leave_out(SPECIAL, path, depth)

    def _directory(self, entry: Entry, parent: int, path: bytes, depth: int) -> None:
        if depth >= DEPTH:
            raise BackupError(f"more than {DEPTH} directories within each other")
        with _write_errors():
            os.mkdir(entry.name, OWN, dir_fd=parent)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            made = os.open(entry.name, flags, dir_fd=parent)
        try:
            self.copied.directories += 1
            self._fill(entry, made, path + b"/", depth + 1)
            with _write_errors():
                os.fchmod(made, entry.mode & PERMISSIONS | OWN)
        finally:
            os.close(made)

    def _fill(self, entry: Entry, made: int, path: bytes, depth: int) -> None:
        if entry.identity in self._directories:
            raise BackupError("this directory is in several others, or in itself")
        self._directories.add(entry.identity)
        children = self.files.entries(entry)
        if self._in_memory + len(children) > MOST_ENTRIES:
            raise BackupError(f"more than {MOST_ENTRIES} entries in it and the directories above it", UNSOUND)
        self._in_memory += len(children)
        for child in children:
            self._one(child, made, path + child.name, depth)
        self._in_memory -= len(children)

    def _file(self, entry: Entry, parent: int) -> None:
        changed = self.files.changed(entry)
        with _write_errors():
            free = os.fstatvfs(parent)
        if entry.size > (room := free.f_bavail * free.f_frsize):
            raise BackupError(f"it has {size_text(entry.size)}, there is room for {size_text(room)}")
        with _write_errors():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            made = os.open(entry.name, flags, 0o600, dir_fd=parent)
        try:
            written = _write(made, self.files.content(entry))
            if written != entry.size:
                raise BackupError(f"it has {entry.size} bytes, only {written} can be read")
            with _write_errors():
                os.fchmod(made, entry.mode & PERMISSIONS)
            with suppress(OSError, OverflowError):  # a time that this node's file system cannot have
                os.utime(made, (changed, changed))
        except BaseException:  # whatever it was, a stop included: a part of a file is none
            with suppress(OSError):  # the directory may be gone, or read-only now: the first error counts
                os.unlink(entry.name, dir_fd=parent)
            raise
        finally:
            os.close(made)
        self.copied.files += 1
        self.copied.bytes += written

    def _link(self, entry: Entry, parent: int, path: bytes, depth: int) -> None:
        target = self.files.link_target(entry)
        if not _stays_inside(target, depth):
            self._leave_out(LEADS_OUT, path, depth)
            return
        with _write_errors():
            os.symlink(target, entry.name, dir_fd=parent)
        self.copied.links += 1

    def _leave_out(self, what: str, path: bytes, depth: int) -> None:
        """Count what is not copied. Raises BackupError if it is all that was to be copied."""
        if depth < 0:
            raise BackupError(f"it is {what}, which is not copied", "name a file or directory")
        self.copied.left_out[what] += 1
        self.reporter.message(Level.DEBUG, self.domain, f"left out {what}: {os.fsdecode(path)}")

    @contextmanager
    def _failures_reported(self, path: bytes) -> Iterator[None]:
        try:
            yield
        except BackupError as error:
            self.check_stop()  # before an error that the stop has caused
            ends = isinstance(error, (NoRoom, SessionEnded))
            if not self.copied.ended:  # not by the directories above it again
                self.copied.failed += 1
                self.copied.ended = ends
                text = f"{os.fsdecode(path)}: {'nothing more can be copied: ' if ends else ''}{error}"
                self.reporter.message(Level.ERROR, self.domain, text)
            if ends:
                raise


class NoRoom(BackupError):
    """Nothing more can be written."""


def named_after(path: str, entry: Entry) -> Entry:
    """Return what a path leads to with the path's own last name: a guest's links may lead to any other.

    So a guest chooses names in the directory only if the path is that of the root.
    """
    parts = os.path.normpath(b"/" + os.fsencode(path)).split(b"/")
    return replace(entry, name=parts[-1] or b"/")


def require_room_for(entry: Entry, directory: str) -> None:
    """Raise BackupError if a copy would get between what there is: the root's entries have any names."""
    place = os.path.join(os.fsencode(directory), entry.name.strip(b"/"))
    with _write_errors():
        if entry.name == b"/" and os.listdir(directory):
            message = f"{directory} is not empty, and the guest chooses the names in its root"
            raise BackupError(message, "name an empty directory")
    if entry.name != b"/" and os.path.lexists(place):
        raise BackupError(f"{os.fsdecode(place)} exists", "name an empty directory")


def _stays_inside(target: bytes, depth: int) -> bool:
    """Return whether a link, `depth` levels below what it may not leave, stays inside.

    Behind a name, which may be a link, `..` leads to an unknown place: it is allowed at the beginning only.
    """
    parts = target.split(b"/")
    up = next((number for number, part in enumerate(parts) if part != b".."), len(parts))
    return bool(parts[0]) and up <= depth and b".." not in parts[up:]


def _write(made: int, content: Iterable[bytes]) -> int:
    """Write a file; zeros become holes. Return its size. Raises NoRoom, BackupError."""
    size = 0
    for data in content:
        if data.count(0) < len(data):
            _write_at(made, data, size)
        size += len(data)
    with _write_errors(ends=True):
        os.ftruncate(made, size)
    return size


def _write_at(made: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        with _write_errors(ends=True):  # half of its content is still to be read: nothing else can be
            count = os.pwrite(made, left, offset)
        left, offset = left[count:], offset + count


@contextmanager
def _write_errors(ends: bool = False) -> Iterator[None]:
    """Raise BackupError, or NoRoom if it `ends` the copy or others would fail too."""
    try:
        yield
    except OSError as error:
        kind = NoRoom if ends or error.errno in FULL else BackupError
        raise kind(f"cannot write: {reason(error)}", "check the free space and the permissions") from error
