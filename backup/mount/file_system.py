"""A read-only FUSE file system with one directory: files that can be read at any offset."""

from __future__ import annotations

import errno
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Callable

import pyfuse3
import trio

from ..errors import BackupError
from .blocks import Data
from .mountpoint import SOURCE
from .shown_file import File

CACHED = 3600.0  # seconds that the kernel may cache names and attributes: they do not change
FIRST = pyfuse3.ROOT_INODE + 1  # inode number of the first file
SECTOR = 512  # bytes; the unit of st_blocks
LONGEST_NAME = 255  # bytes, as in Linux
LARGEST_READ = 1 << 20  # bytes; the kernel's limit
OPTIONS = {f"fsname={SOURCE}", "ro", "nosuid", "nodev", "noexec", "default_permissions"}


class FileSystem(pyfuse3.Operations):  # type: ignore[misc]
    """The directory with its files. `failed` is called with each file and range that cannot be read."""

    def __init__(
        self, files: Sequence[File], time_ns: int, failed: Callable[[File, int, BackupError], None]
    ) -> None:
        """`time_ns` is the time of all files, in nanoseconds since 1970."""
        super().__init__()
        self._files = files
        self._time_ns = time_ns
        self._failed = failed

    async def getattr(self, inode: int, ctx: Any = None) -> Any:
        return self._attributes(inode)

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
        for number, file in enumerate(self._files):
            if file.name.encode() == name:
                return self._attributes(FIRST + number)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, inode: int, start: int, token: Any) -> None:
        for number, file in enumerate(self._files[start:], start):
            if not pyfuse3.readdir_reply(
                token, file.name.encode(), self._attributes(FIRST + number), number + 1
            ):
                break

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, inode: int, offset: int, length: int) -> Data:
        file = self._files[inode - FIRST]
        read = partial(file.content.read, offset, length)
        try:
            there = file.content.is_there(offset, length)
            data: Data = read() if there else await trio.to_thread.run_sync(read)
        except BackupError as error:
            self._failed(file, offset, error)
            raise pyfuse3.FUSEError(errno.EIO) from error
        return data

    async def statfs(self, ctx: Any) -> Any:
        """Give the sizes, without which `df` of all file systems fails."""
        values = pyfuse3.StatvfsData()
        values.f_bsize = values.f_frsize = SECTOR
        values.f_blocks = sum(-(-file.data_bytes // SECTOR) for file in self._files)
        values.f_files = len(self._files) + 1
        values.f_namemax = LONGEST_NAME
        return values

    def _attributes(self, inode: int) -> Any:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.entry_timeout = entry.attr_timeout = CACHED
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = self._time_ns
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode, entry.st_nlink = stat.S_IFDIR | 0o500, 2
            return entry
        file = self._files[inode - FIRST]
        entry.st_mode, entry.st_nlink = stat.S_IFREG | 0o400, 1
        entry.st_size = file.content.size
        entry.st_blocks = -(-file.data_bytes // SECTOR)
        entry.st_blksize = LARGEST_READ
        return entry


class Serving:
    """A file system that is being served, until somebody unmounts it or `stop` is called."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=self._run, name="file system", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def check(self) -> None:
        """Raise the error that ended it, if it was one: a bug, or no memory."""
        if self._error:
            raise self._error

    def stop(self) -> None:
        if self._token:
            with suppress(trio.RunFinishedError):  # already ended
                trio.from_thread.run_sync(pyfuse3.terminate, trio_token=self._token)
        self._thread.join()

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # raised by `check`, in the thread that waits
            self._error = error
        finally:
            pyfuse3.close(unmount=True)  # lazily: readers get an error
            self._ready.set()
            self.ended.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._ready.set()
        await pyfuse3.main()


@contextmanager
def served(files: FileSystem, directory: str) -> Iterator[Serving]:
    """Mount the files on a directory during the block. Raises BackupError."""
    try:
        pyfuse3.init(files, directory, OPTIONS)
    except (OSError, RuntimeError) as error:
        raise BackupError(f"cannot mount a file system on {directory}: {error}", "modprobe fuse") from error
    serving = Serving()
    serving.start()
    try:
        yield serving
    finally:
        serving.stop()
