"""A private read-only FUSE file system that shows restic a domain's snapshots as segment files."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyfuse3
import trio

from backup.command import COMMAND
from backup.errors import BackupError
from backup.system.mounts import unshare_mounts

from .last_files import MANIFEST, NAMES, LastFiles
from .reader import Answer, SegmentReader, ZerosReader
from .tree import DISK, SUBDIRECTORY, ZEROS_FILE, DiskFiles, Tree, link_content

DEVICE = os.makedev(10, 229)  # /dev/fuse, wherever a container has it (Linux, admin-guide/devices.txt)
FAILED_POLL = 0.05  # seconds
CLOSED_POLL = 0.005  # seconds between two checks whether the segments before the last files are closed


class SegmentFiles(pyfuse3.Operations):  # type: ignore[misc]
    """The file system: a directory for each disk, subdirectories, segments, and the last files.

    `served` counts the bytes that were read, `loading` the reads that wait for the cluster. If a read or the
    whole file system fails, `error` is set, and readers block until `give_up` is called. restic must be
    interrupted before that, as it skips files that it cannot read.
    """

    def __init__(self, disks: Sequence[DiskFiles], last: LastFiles) -> None:
        super().__init__()
        self.served = 0
        self.loading = 0
        self.error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._given_up = threading.Event()
        self._disks = disks
        self._tree = Tree(disks, last.time)
        self._last = last
        self._open: dict[int, tuple[DiskFiles, int, SegmentReader | ZerosReader]] = {}
        self._open_last: dict[int, int] = {}  # the inodes of the last files by handle
        self._handles = 0

    def give_up(self) -> None:
        """Let reads that cannot be answered fail, now and later."""
        self._given_up.set()

    def serve(self, serves: threading.Event) -> None:
        """Serve what was mounted until `stop` is called, then unmount it. The body of a thread.

        `serves` is set when it is ready. After its end, however it ended, no reader waits for an answer.
        """
        try:
            trio.run(self._serve, serves)
        except BaseException as error:  # out of memory, or a bug: the monitor of restic raises it
            self.error = self.error or error
            serves.set()
            self._given_up.wait()
        finally:
            pyfuse3.close(unmount=True)
            for _, _, segment in self._open.values():  # before their images are closed
                segment.close()

    async def _serve(self, serves: threading.Event) -> None:
        self._token = trio.lowlevel.current_trio_token()
        serves.set()
        await pyfuse3.main()

    def stop(self) -> None:
        """End `serve`; later reads fail."""
        self.give_up()
        if self._token:
            with suppress(trio.RunFinishedError):  # already ended
                trio.from_thread.run_sync(pyfuse3.terminate, trio_token=self._token)

    async def getattr(self, inode: int, ctx: Any = None) -> Any:
        return self._tree.attributes(inode)

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> Any:
        found = self._tree.found(parent, name)
        if found is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._tree.attributes(found)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, inode: int, start: int, token: Any) -> None:
        for number in range(start, self._tree.count(inode)):
            name, entry = self._tree.entry(inode, number)
            if not pyfuse3.readdir_reply(token, name, self._tree.attributes(entry), number + 1):
                break

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        self._handles += 1
        if inode in NAMES:
            self._open_last[self._handles] = inode
            return pyfuse3.FileInfo(fh=self._handles, direct_io=True)
        disk, number = self._disks[(inode >> DISK) - 1], inode % SUBDIRECTORY - 1
        if inode % (1 << DISK) == ZEROS_FILE:
            zeros = ZerosReader(disk.segments.segment_size)
            self._open[self._handles] = (disk, number, zeros)
        else:
            segment = SegmentReader(disk.reader, disk.segments.extent(number))
            self._open[self._handles] = (disk, number, segment)
        # bypasses the kernel's cache: larger requests, and no file is read twice
        return pyfuse3.FileInfo(fh=self._handles, direct_io=True)

    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return link_content(inode)

    async def read(self, handle: int, offset: int, length: int) -> Answer:
        if handle in self._open_last:
            return await self._read_last(self._open_last[handle], offset, length)
        disk, number, segment = self._open[handle]
        while (answer := segment.at_once(offset, length)) is None:
            self.loading += 1
            try:
                await trio.to_thread.run_sync(segment.load, offset)
            except Exception as error:  # also a bug: without an answer restic would hang
                await self._fail(error)
            finally:
                self.loading -= 1
        self.served += len(answer)
        if segment.complete:
            disk.read.keep(number, segment.checksums)
        return answer

    async def _read_last(self, inode: int, offset: int, length: int) -> Answer:
        """Answer when restic has read all files before: it opens them in the order of their names."""
        while not self._is_due(inode) and not self._given_up.is_set():
            await trio.sleep(CLOSED_POLL)
        if not self._last.packed and not self._given_up.is_set():
            await self._pack()
        if self._given_up.is_set():
            raise pyfuse3.FUSEError(errno.EIO)
        answer = self._last.part(inode, offset, length)
        self.served += len(answer)
        return answer

    def _is_due(self, inode: int) -> bool:
        return not self._open if inode == MANIFEST else self._last.given

    async def _pack(self) -> None:
        self.loading += 1
        try:
            await trio.to_thread.run_sync(self._last.pack)
        except Exception as error:  # also a bug: without an answer restic would hang
            await self._fail(error)
        finally:
            self.loading -= 1

    async def release(self, handle: int) -> None:
        if self._open_last.pop(handle, None):
            return
        _, _, segment = self._open[handle]
        await trio.to_thread.run_sync(segment.close)
        del self._open[handle]  # only now: with the last one the images are closed

    async def _fail(self, error: Exception) -> None:
        self.error = self.error or error
        while not self._given_up.is_set():
            await trio.sleep(FAILED_POLL)
        raise pyfuse3.FUSEError(errno.EIO)


@contextmanager
def mounted(files: SegmentFiles, directory: str) -> Iterator[Collection[int]]:
    """Mount the files during the block, visible only to the programs that this thread starts.

    The block gets the open files through which they are served. The mount is in a private namespace, which
    ends with the last of these programs. Raises BackupError.
    """
    try:
        unshare_mounts()
        pyfuse3.init(files, directory, {"fsname=virt-rbd-backup", "ro", "default_permissions"})
    except (OSError, RuntimeError) as error:
        message = f"cannot mount a file system on {directory}: {error}"
        raise BackupError(message, f"see {COMMAND} check") from error
    serves = threading.Event()
    serving = threading.Thread(target=files.serve, args=(serves,), name="segments", daemon=True)
    serving.start()
    serves.wait()
    try:
        yield _connections()
    finally:
        files.stop()
        serving.join()


def _connections() -> Collection[int]:
    """Return this process's open FUSE connections; other files may come and go meanwhile."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it has just been closed
            if os.fstat(int(number)).st_rdev == DEVICE:
                found.append(int(number))
    return found
