"""Directories, files and links of an ext2, ext3 or ext4 file system.

All in it was chosen by a guest, which may be hostile. The layout of an inode is that of linux/fs/ext4/ext4.h.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Optional

from ..errors import BackupError
from ..text import size_text
from .debugfs import Debugfs, debugfs
from .entries import MOST_ENTRIES, Entry, NotFound, Unread, shown
from .session import UNSOUND
from .volumes import Volume

ROOT = 2  # its inode number
ENCRYPTED = 0x800  # flag of an inode
INLINE = 60  # bytes; shorter targets of links are in the inode
MOST_LINKS = 40  # that a path may lead over, as in Linux
LONGEST_TARGET = 4096  # bytes of a link's target, as in Linux
NO_NAMES = (b"", b".", b"..")
LONGEST_ENTRY = 400  # bytes of it, with a name of 255
LARGEST_ID = 0xFFFFFFFF  # of owners and groups, which debugfs prints as signed numbers
# Of `ls -p`: inode, mode, owner, group, name, size. A name may hold anything but a slash, newlines too.
ENTRY = re.compile(rb"/(\d{1,10})/([0-7]{6})/(-?\d{1,10})/(-?\d{1,10})/([^/]*)/(\d{0,20})/\n")
# Of `inode_dump`: an offset, up to eight values, and the same as text, which may be of hex digits too.
DUMP = re.compile(rb"^([0-7]{4})  ((?:[0-9a-f]{4} ){1,8})|^(\*)$", re.MULTILINE)
FLAGS, BLOCK, EXTRA_SIZE, CHANGED_EXTRA = 32, 40, 128, 136  # offsets in an inode
BLOCK_END = BLOCK + INLINE


class ExtFiles:
    """The files of a file system. Satisfies entries.GuestFiles."""

    def __init__(self, debugfs: Debugfs) -> None:
        self._debugfs = debugfs

    def entries(self, directory: Entry) -> Sequence[Entry]:
        self._inode(directory)  # if it is encrypted, its names are of any bytes
        errors: list[BackupError] = []
        parts = self._debugfs.stream_before(f"ls -p <{directory.inode}>", errors)
        found: list[Entry] = []
        number = 0
        try:
            for number, one in enumerate(_listed(parts), 1):
                if number > MOST_ENTRIES:
                    raise BackupError(f"a directory with more than {MOST_ENTRIES} entries", UNSOUND)
                inode, mode, owner, group, name, size = one.groups()
                if name not in NO_NAMES and int(inode):
                    ids = (int(owner) & LARGEST_ID, int(group) & LARGEST_ID)
                    found.append(Entry(int(inode), int(mode, 8), *ids, name, int(size or 0)))
        finally:
            self._debugfs.skip(parts)
        if errors and not number:
            raise errors[0]
        if not number:  # debugfs prints nothing for one without blocks
            raise BackupError("a directory without any entry is damaged: an empty one has two", UNSOUND)
        found.sort(key=lambda entry: entry.name)
        return [*found, *(Unread(0, 0, 0, 0, b"", 0, error) for error in errors)]

    def content(self, file: Entry) -> Iterator[bytes]:
        left = file.size  # of a file in its inode (inline_data), debugfs prints the room for it there
        for data in self._debugfs.stream(f"cat <{file.inode}>"):
            yield data[:left]
            left -= len(data[:left])

    def link_target(self, link: Entry) -> bytes:
        if link.size > LONGEST_TARGET:
            raise BackupError(f"a link with a target of {size_text(link.size)}", UNSOUND)
        inode = self._inode(link)
        in_inode = link.size < INLINE
        target = inode[BLOCK:BLOCK_END] if in_inode else self._debugfs.ask(f"cat <{link.inode}>")
        target = target[: link.size]
        if len(target) < link.size or b"\0" in target:
            raise BackupError("a link with a target that no link can have", UNSOUND)
        return target

    def changed(self, entry: Entry) -> int:
        """Return the time from the inode. Raises BackupError, also if the guest has encrypted the file."""
        inode = self._inode(entry)
        seconds = int.from_bytes(inode[16:20], "little", signed=True)
        if int.from_bytes(inode[EXTRA_SIZE : EXTRA_SIZE + 2], "little") < CHANGED_EXTRA + 4 - EXTRA_SIZE:
            return seconds  # as ext3 made it: other things are there
        epoch = int.from_bytes(inode[CHANGED_EXTRA : CHANGED_EXTRA + 4], "little") & 3  # until 2446
        return seconds + (epoch << 32)

    def _inode(self, entry: Entry) -> bytes:
        """Return an inode, with its blocks at least. Raises BackupError, also if it is encrypted."""
        inode = _bytes(self._debugfs.ask(f"inode_dump <{entry.inode}>"))
        if int.from_bytes(inode[FLAGS : FLAGS + 4], "little") & ENCRYPTED:
            raise BackupError("the guest has encrypted it", "only the guest can read it: restore the disk")
        return inode

    def find(self, path: bytes) -> Entry:
        above: list[Entry] = []
        here = Entry(ROOT, stat.S_IFDIR, 0, 0, b"/", 0)
        left, links = path.split(b"/")[::-1], 0
        while left:
            name = left.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                here = above.pop() if above else here
                continue
            found = self._child(here, name)
            if found is None:
                raise NotFound(f"{shown(path)} does not exist", "list the directory above it")
            if not found.is_link:
                above.append(here)
                here = found
                continue
            links += 1
            if links > MOST_LINKS:
                raise NotFound(f"{shown(path)} leads over too many links", "name what it links to")
            target = self.link_target(found)
            if target.startswith(b"/"):
                above, here = [], above[0] if above else here
            left += target.split(b"/")[::-1]
        return here

    def _child(self, directory: Entry, name: bytes) -> Optional[Entry]:
        if directory.unread:  # it may have been a directory
            raise directory.unread
        if not directory.is_directory:
            return None
        for entry in self.entries(directory):
            if entry.name == name:
                return entry
            if isinstance(entry, Unread):
                raise entry.unread  # it may be what was not read
        return None


def _listed(parts: Iterator[bytes]) -> Iterator[re.Match[bytes]]:
    """Yield the entries that `ls -p` prints. Raises BackupError."""
    rest = b""
    for part in parts:
        rest += part
        end = 0
        while one := ENTRY.match(rest, end):
            yield one
            end = one.end()
        rest = rest[end:]
        if len(rest) > LONGEST_ENTRY:
            break
    if rest.strip():
        raise BackupError("a directory has a name with a slash in it", UNSOUND)


def _bytes(dump: bytes) -> bytes:
    """Return what a dump shows: lines with an octal offset and 16-bit values; * for lines like the last."""
    data, last = bytearray(), b""
    for offset, values, same in DUMP.findall(dump):
        if same:
            continue
        start = int(offset, 8)
        while last and len(data) < start:
            data += last
        last = bytes.fromhex(values.replace(b" ", b"").decode())
        data += last
    while last and len(data) < BLOCK_END:  # the last lines are left out if they are the same
        data += last
    return bytes(data)


@dataclass(frozen=True)
class ExtSystems:
    """The ext file systems among volumes. Satisfies entries.Systems."""

    volumes: Sequence[Volume]
    check_stop: Callable[[], None]

    @property
    def names(self) -> Sequence[str]:
        return [volume.name for volume in self.volumes]

    @contextmanager
    def opened(self, name: str) -> Iterator[ExtFiles]:
        volume = self.volumes[self.names.index(name)]
        with debugfs(str(volume.path), volume.offset, self.check_stop) as program:
            yield ExtFiles(program)
