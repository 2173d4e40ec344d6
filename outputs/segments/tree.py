"""The tree of files that restic sees: names, inode numbers and attributes."""

from __future__ import annotations

import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyfuse3

from backup.protocols import SnapshotReader

from .last_files import NAMES
from .layout import (
    HOLES,
    PER_DIRECTORY,
    ZEROS,
    ZEROS_LINK,
    Segments,
    hole_name,
    segment_name,
    subdirectory_name,
)
from .numbers import Numbers
from .read_segments import ReadSegments

CACHED = 3600.0  # seconds that the kernel may cache a file's attributes: they do not change
DISK = 32  # the upper bits of an inode number are the disk's number, the lower ones the file of the disk
SUBDIRECTORY = 1 << (DISK - 1)  # subdirectories from this number on, segments below it, from 1
ZEROS_FILE = SUBDIRECTORY - 1
HOLES_DIRECTORY = (1 << DISK) - 1  # the hidden subdirectory
HOLE = ZEROS_FILE - PER_DIRECTORY  # links in it from this number on


@dataclass
class DiskFiles:
    """One disk's snapshot: its segments with their times (nanoseconds since 1970), and its reader.

    `holes` are the segments without data, `read` those that were read completely. `linked` are the
    subdirectories that have only holes.
    """

    segments: Segments
    times: Sequence[int]
    reader: SnapshotReader
    holes: Collection[int] = ()
    read: ReadSegments = field(init=False)
    linked: Numbers = field(init=False)

    def __post_init__(self) -> None:
        self.read = ReadSegments(self.segments)
        self.linked = Numbers(self.segments.subdirectories)
        for number in range(self.segments.subdirectories) if self.holes else ():
            holes = (segment in self.holes for segment in self.segments.in_subdirectory(number))
            if self.segments.can_be_linked(number) and all(holes):
                self.linked.add(number)

    @property
    def special(self) -> Sequence[tuple[bytes, int]]:
        """The further entries of the disk's directory, and their numbers: what links lead to."""
        found = [(ZEROS.encode(), ZEROS_FILE)] if self.holes else []
        return [*found, *([(HOLES.encode(), HOLES_DIRECTORY)] if self.linked else [])]

    @property
    def size(self) -> int:
        """The size of all files together, in bytes."""
        holes = self.segments.segment_size * len(self.holes)
        return self.segments.size - holes + (self.segments.segment_size if holes else 0)


class Tree:
    """A directory for each disk, its subdirectories and segments, and the last files.

    Directories are given by their inode numbers, and entries in them by their numbers from 0.
    """

    def __init__(self, disks: Sequence[DiskFiles], last_time: int) -> None:
        """`last_time` is the last files' time, in nanoseconds since 1970."""
        self._disks = disks
        self._last_time = last_time

    def found(self, directory: int, name: bytes) -> int | None:
        """Return the inode number of the entry with this name, None if there is none."""
        count = self.count(directory)
        likely: Collection[int] = range(count)
        if directory != pyfuse3.ROOT_INODE:
            # among what may be thousands the one with that number; the special ones come last
            likely = (_number(name, directory), count - 2, count - 1)
        for number in likely:
            if 0 <= number < count and (entry := self.entry(directory, number))[0] == name:
                return entry[1]
        return None

    def count(self, directory: int) -> int:
        """Return the number of a directory's entries."""
        if directory == pyfuse3.ROOT_INODE:
            return len(self._disks) + len(NAMES)
        disk, part = self._disks[(directory >> DISK) - 1], directory % (1 << DISK)
        if not part:
            return disk.segments.subdirectories + len(disk.special)
        if part == HOLES_DIRECTORY:
            return PER_DIRECTORY
        return len(disk.segments.in_subdirectory(part - SUBDIRECTORY))

    def entry(self, directory: int, number: int) -> tuple[bytes, int]:
        """Return (name, inode) of a directory's entry."""
        if directory == pyfuse3.ROOT_INODE:
            if number < len(self._disks):
                return self._disks[number].segments.directory.encode(), (number + 1) << DISK
            inode = [*NAMES][number - len(self._disks)]
            return NAMES[inode], inode
        disk, part = self._disks[(directory >> DISK) - 1], directory % (1 << DISK)
        if part == HOLES_DIRECTORY:
            return hole_name(number).encode(), directory - part + HOLE + number
        if part:
            segment = disk.segments.in_subdirectory(part - SUBDIRECTORY)[number]
            return segment_name(segment).encode(), directory - part + 1 + segment
        if number < disk.segments.subdirectories:
            return subdirectory_name(number).encode(), directory + SUBDIRECTORY + number
        name, inode = disk.special[number - disk.segments.subdirectories]
        return name, directory + inode

    def _is_directory(self, inode: int) -> bool:
        disk, part = self._disks[(inode >> DISK) - 1], inode % (1 << DISK)
        return part in (0, HOLES_DIRECTORY) or (
            part >= SUBDIRECTORY and part - SUBDIRECTORY not in disk.linked
        )

    def attributes(self, inode: int) -> Any:
        """Return the attributes of what has this inode number, as pyfuse3 wants them."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.entry_timeout = entry.attr_timeout = CACHED
        part = inode % (1 << DISK)
        if inode in NAMES:  # without a size, which is unknown yet: they are read to their end, in each run
            entry.st_mode = stat.S_IFREG | 0o400
            entry.st_nlink = 1
            entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = self._last_time
            return entry
        entry.st_nlink = 1
        if inode == pyfuse3.ROOT_INODE or self._is_directory(inode):
            entry.st_mode, entry.st_nlink = stat.S_IFDIR | 0o500, 2
            return entry
        disk = self._disks[(inode >> DISK) - 1]
        if part == ZEROS_FILE:
            entry.st_mode, entry.st_size = stat.S_IFREG | 0o400, disk.segments.segment_size
        elif part >= HOLE:
            entry.st_mode = stat.S_IFLNK | 0o777
            entry.st_size = len(link_content(inode))
        else:
            hole = part - 1 in disk.holes
            entry.st_mode = stat.S_IFLNK | 0o777 if hole else stat.S_IFREG | 0o400
            entry.st_size = len(ZEROS_LINK) if hole else disk.segments.extent(part - 1).length
            entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = disk.times[part - 1]
        return entry


def link_content(inode: int) -> bytes:
    """Return what a symbolic link contains."""
    return (HOLES if inode % (1 << DISK) >= SUBDIRECTORY else ZEROS_LINK).encode()


def _number(name: bytes, directory: int) -> int:
    """Return the number that the entry of a disk's directory, or of a subdirectory, with this name has."""
    part = directory % (1 << DISK)
    first = (part - SUBDIRECTORY) * PER_DIRECTORY if part not in (0, HOLES_DIRECTORY) else 0
    return int(name) - first if name.isdigit() else -1
