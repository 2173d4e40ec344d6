"""The last files that restic reads of a domain: the manifest, and its checksum.

restic leaves out a file that it cannot read, and saves a snapshot nevertheless. So the manifest is given out
only when all segments were read. When this process is killed, no snapshot is saved at all: restic is ended
while it waits for a read (restic_repository/dying_worker.py). Should the reads fail nevertheless, restic
cannot read either of these two files, and cannot write its two messages about that into a broken pipe. It
writes one after the other, so the second one waits for the end that the first one brings (SIGPIPE).
"""

from __future__ import annotations

import hashlib
from typing import Callable, Optional

from backup.stored import Packed
from backup.system.spool import Spool, chunks

from .layout import CHECKSUM_FILE, MANIFEST_FILE

# The files' inode numbers, between the root's and those of the disks.
MANIFEST, CHECKSUM = 2, 3
NAMES = {MANIFEST: MANIFEST_FILE.encode(), CHECKSUM: CHECKSUM_FILE.encode()}


class LastFiles:
    """The content of both files, by their inode numbers.

    `pack` returns the manifest: it is called once, when all segments were read and closed, and raises
    BackupError if one is missing. `time`: the files' time, in nanoseconds since 1970. `given` is whether the
    manifest was read to its end.
    """

    def __init__(self, pack: Callable[[], Packed], time: int) -> None:
        self.time = time
        self.given = False
        self._pack = pack
        self._manifest: Optional[Packed] = None
        self._checksum = Spool()

    @property
    def size(self) -> int:
        """The size of both files together, in bytes; 0 before the manifest exists."""
        return sum(map(len, map(self._content, NAMES))) if self.packed else 0

    @property
    def packed(self) -> bool:
        return self._manifest is not None

    def pack(self) -> None:
        """Pack the manifest. Raises BackupError."""
        manifest, digest = self._pack(), hashlib.sha256()
        for chunk in chunks(manifest):
            digest.update(chunk)
        self._checksum = Spool(f"{digest.hexdigest()}  {MANIFEST_FILE}\n".encode())
        self._manifest = manifest

    def part(self, inode: int, offset: int, length: int) -> bytes:
        """Return up to `length` bytes of a file at an offset, b"" at its end."""
        part = self._content(inode).read(offset, length)
        if inode == MANIFEST and not part:
            self.given = True
        return part

    def _content(self, inode: int) -> Packed:
        assert self._manifest is not None
        return self._manifest if inode == MANIFEST else self._checksum
