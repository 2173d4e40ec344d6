"""The command files: lists and copies files of a guest's file systems, out of a restore point.

Its disks are mounted as files in a private namespace, where only the programs that it starts see them. No
file system of a guest is ever mounted.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from .. import PROGRAM
from ..errors import BackupError, ConfigError, reason
from ..model import Level
from ..mount.file_system import File, FileSystem, served
from ..mount.shown_point import ShownPoint, shown_point
from ..protocols import Output, Reporter
from ..settings import Settings
from ..system.process import unshare_mounts
from ..system.stop_request import StopRequest
from .copy_out import Copied, CopyOut
from .debugfs import debugfs
from .ext import Entry, ExtFiles, NotFound
from .volumes import Volume, volumes

MOUNTPOINT = "files"  # in RUNTIME_DIR


@dataclass(frozen=True)
class FilesOrder:
    """What to list or copy; "" for what was not given. `disk` is a disk or a partition: vda, vda1."""

    domain: str
    at: str = "latest"
    path: str = ""
    disk: str = ""
    to: str = ""

    def require_consistent(self) -> None:
        """Raise ConfigError unless there is something to copy where it is to be copied to."""
        if not self.to:
            return
        if not self.path:
            raise _wrong("--to requires a PATH", "name a file or directory of the guest, such as /etc")
        if not os.path.isdir(self.to):
            raise _wrong(f"{self.to} is not a directory", f"mkdir {shlex.quote(self.to)}")


@dataclass(frozen=True)
class Result:
    """The file systems; with a path a directory's `entries`, or what was copied."""

    volumes: Sequence[Volume]
    entries: Optional[Sequence[Entry]] = None
    copied: Optional[Copied] = None


@dataclass(frozen=True)
class Files:
    """Carries out an order."""

    order: FilesOrder
    settings: Settings
    output: Output
    reporter: Reporter
    stop: StopRequest

    def carry_out(self) -> Result:
        """List the file systems, or a directory, or copy. Raises BackupError."""
        self.order.require_consistent()
        with ThreadPoolExecutor(1, thread_name_prefix="files") as thread:  # it has a namespace of its own
            return thread.submit(self._carry_out).result()

    def _carry_out(self) -> Result:
        limit = self.settings.output_stall_timeout
        with shown_point(self.output, self.order.domain, self.order.at, limit, self.stop.check) as point:
            disks = self._selected_disks(point)
            with self._mounted(point, disks) as directory:
                found = [
                    volume
                    for target, disk in disks.items()
                    for volume in volumes(target, Path(directory, disk.name), self.stop.check)
                    if self.order.disk in ("", target, volume.name)
                ]
                if not found:
                    raise _wrong(f"there is no {self.order.disk}", f"`{PROGRAM} files DOMAIN` lists them")
                return self._read(found, point.saved.name) if self.order.path else Result(found)

    def _selected_disks(self, point: ShownPoint) -> dict[str, File]:
        disks = {target: one for target, one in point.disks.items() if self.order.disk.startswith(target)}
        if self.order.disk and not disks:
            message = f"the restore point has no disk {self.order.disk}, only {', '.join(point.disks)}"
            raise _wrong(message, "name one of them, or a partition, such as vda1")
        return disks or dict(point.disks)

    @contextmanager
    def _mounted(self, point: ShownPoint, disks: dict[str, File]) -> Iterator[str]:
        """Mount the disks' files, visible to this thread and what it starts, and return the directory."""
        directory = Path(self.settings.runtime_dir, MOUNTPOINT)
        try:
            unshare_mounts()
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise BackupError(f"cannot mount on {directory}: {reason(error)}", "run it as root") from error
        with served(FileSystem([*disks.values()], point.time_ns, self._failed), str(directory)):
            yield str(directory)

    def _failed(self, file: File, offset: int, error: BackupError) -> None:
        if self.stop.requested:
            return
        self.reporter.message(Level.ERROR, "", f"{file.name}: cannot read at offset {offset}: {error}")

    def _read(self, found: Sequence[Volume], domain: str) -> Result:
        """List or copy what the path leads to, in the only file system that has it."""
        readable = [volume for volume in found if volume.is_ext]
        if not readable:
            kinds = ", ".join(f"{one.name} ({one.kind or 'unknown'})" for one in found)
            hint = f"`{PROGRAM} mount` shows the disks as files, which guestfish reads"
            raise BackupError(f"there is no ext2, ext3 or ext4 file system on {kinds}", hint)
        having = [volume for volume in readable if len(readable) == 1 or self._has_path(volume)]
        names = ", ".join(volume.name for volume in having or readable)
        if len(having) > 1:
            raise _wrong(f"{self.order.path} is in several file systems: {names}", "name one with --disk")
        if not having:
            raise BackupError(f"{self.order.path} does not exist on {names}", "list the directory above it")
        return self._read_volume(having[0], domain)

    def _has_path(self, volume: Volume) -> bool:
        with self._opened(volume) as files:
            try:
                files.find(os.fsencode(self.order.path))
            except NotFound:
                return False
        return True

    def _read_volume(self, volume: Volume, domain: str) -> Result:
        if volume.needs_recovery:
            text = f"{volume.name} was saved in use, its journal is not replayed: newest files may be damaged"
            self.reporter.message(Level.WARNING, domain, text)
        with self._opened(volume) as files:
            entry = files.find(os.fsencode(self.order.path))
            if not self.order.to:
                entries = files.entries(entry.inode) if entry.is_directory else [entry]
                return Result([volume], entries)
            place = os.path.join(os.fsencode(self.order.to), entry.name.strip(b"/"))
            if entry.name != b"/" and os.path.lexists(place):
                raise BackupError(f"{os.fsdecode(place)} exists", "name an empty directory")
            copy = CopyOut(files, domain, self.reporter, self.stop.check)
            return Result([volume], copied=copy.copy(entry, self.order.to))

    @contextmanager
    def _opened(self, volume: Volume) -> Iterator[ExtFiles]:
        with debugfs(str(volume.path), volume.offset, self.stop.check) as program:
            yield ExtFiles(program)


def _wrong(message: str, hint: str) -> ConfigError:
    return ConfigError([BackupError(message, hint)])
