"""Runs a guest on a restore point in the repository: what it writes is in overlays, and removed with it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from ..command import COMMAND
from ..errors import BackupError, NotDrillable, TransientError, reason
from ..hypervisor.disk_xml import NVRAM_TARGET
from ..hypervisor.domain_xml import nvram_path
from ..hypervisor.overlay_xml import Export, overlays, qcow2_exports
from ..hypervisor.qcow2 import MAGIC, needed_file
from ..mount.shown_file import File
from ..mount.shown_point import ShownPoint
from ..restore.domain import RestoredDomain
from ..restore.qemu_img import qemu_img
from ..restore.written_files import Written, written_for_a_while
from ..system.time_limit import CheckStop, begun
from ..text import size_text
from .server import SECTOR, Server, served, size_of

PREFIX = "virt-rbd-backup-"  # of directories in DRILL_DIR
DIRECTORY_LIMIT = 74  # bytes of DRILL_DIR: the path of a socket in such a directory has 107 at the most
ROOM = 2 << 30  # bytes that have to be free before: what a guest writes while it boots
RESERVE = 1 << 30  # bytes that stay free, or the guest is ended
STALL_LIMIT = 120.0  # seconds for the answer to a read
SLOW = 10.0  # seconds for one when the guest's time is up
POLL = 0.1  # seconds between two checks of a read
UNREADABLE = "restic check --read-data; another restore point may be sound"
NVRAM_LIMIT = 64 << 20  # bytes
SIZE_OFFSET, SIZE_LENGTH = 24, 8  # bytes, where a qcow2 header has the size of its disk


@dataclass(frozen=True)
class InstantGuest:
    """A guest that may run on a restore point. `parent` is the directory for that of its overlays."""

    domain: RestoredDomain
    point: ShownPoint
    parent: str
    check_stop: CheckStop
    _name: str = field(default_factory=lambda: f"{PREFIX}{uuid4().hex[:12]}", init=False)
    _failed: list[BackupError] = field(default_factory=list, init=False)

    @property
    def directory(self) -> Path:
        return Path(self.parent, self._name)

    @contextmanager
    def running(self) -> Iterator[RunningGuest]:
        """Run it during the block; nothing is left of it afterwards.

        Raises BackupError; NotDrillable if that proves nothing about the restore point.
        """
        self._require_possible()
        exports = {target: self._export(target) for target in self.point.disks}
        xml = self.domain.isolated_xml({}, exports=exports)
        if not overlays(xml):
            hint = f"{COMMAND} restore-points shows what it has"
            raise NotDrillable("the restore point has no whole disk of the domain", hint)
        self._require_readable(xml)
        with self._directory(xml), self._server() as server:
            self._fill(xml)
            with self.domain.running_temporarily(xml):
                yield RunningGuest(xml, self.directory, self.point, server, self._failed)

    def _require_possible(self) -> None:
        """Raise NotDrillable unless the guest can run here."""
        if not self.domain.hypervisor.local:
            hint = 'drill it on that node, with LIBVIRT_URI = "qemu:///system", or set DRILL_POOL'
            raise NotDrillable(f"its libvirt ({self.domain.hypervisor.uri}) is on another node", hint)
        try:
            self.domain.require_free()
        except BackupError as error:
            hint = "is another drill of it running?"
            raise error if error.transient else NotDrillable(error.message, hint) from error
        if (free := _free(self.parent)) < ROOM:
            message = f"DRILL_DIR {self.parent} has {size_text(free)} free"
            raise NotDrillable(f"{message}, the guest's writes may need {size_text(ROOM)}", _HINT)

    def _require_readable(self, xml: str) -> None:
        """Read where QEMU does while libvirt starts it, which would hang as long as that read.

        Raises NotDrillable if a header would lead QEMU to other files of this node.
        """
        for target, disk in self.point.disks.items():
            began, read = time.monotonic(), begun(partial(disk.content.read, 0, SECTOR))
            while not read.done():
                self.check_stop()
                _require_answers(self.point, time.monotonic() - began)
                wait([read], POLL)
            _require_alone(target, bytes(read.result()), target in qcow2_exports(xml))
        _require_alone("NVRAM", self.point.saved.definition.nvram, True)

    def _export(self, target: str) -> Export:
        return Export(target, self._socket, str(self.directory))

    @property
    def _socket(self) -> str:
        return str(self.directory / "nbd")

    def _nvram(self, xml: str) -> Sequence[str]:
        """Return the path for the copy of NVRAM that was saved like a disk, if there is one."""
        return [nvram_path(xml)] if NVRAM_TARGET in self.point.disks else []

    @contextmanager
    def _directory(self, xml: str) -> Iterator[None]:
        """Make the directory for the block; it is recorded, so that nothing stays if we are killed."""
        domain, directory = self.domain, str(self.directory)
        own = [self._socket, *(one.path for one in overlays(xml)), *self._nvram(xml)]
        uri = domain.hypervisor.uri
        written = Written(domain.name, socket.gethostname(), uri, domain.uuid, own, (), [directory])
        with written_for_a_while(
            domain.state_dir, written, domain.hypervisor.needed_paths, domain.reporter, domain.end
        ):
            with _errors(directory):
                self.directory.mkdir()
                self.directory.chmod(0o711)  # QEMU runs as another user
            yield

    @contextmanager
    def _server(self) -> Iterator[Server]:
        users = {os.geteuid(), 0, *self.domain.hypervisor.qemu_users()}
        with served(self.point.disks, self._socket, users, self._read_failed) as server:
            yield server

    def _read_failed(self, file: File, offset: int, error: BackupError) -> None:
        text = f"{file.name}: cannot read at offset {offset}: {error.message}"
        kind = TransientError if error.transient else BackupError
        self._failed.append(kind(text, error.hint))

    def _fill(self, xml: str) -> None:
        """Make the overlays, and the copy of NVRAM."""
        for one in overlays(xml):
            where = f"nbd+unix:///{quote(one.export, safe='')}?socket={quote(self._socket)}"
            backing = ("-u", "-F", one.kind, "-b", where)  # -u: not opened, so its size has to be given
            size = str(_size(self.point.disks[one.export], one.kind))
            try:
                qemu_img(("create", "-q", "-f", "qcow2", *backing, one.path, size), self.check_stop)
            except BackupError as error:
                self.check_stop()
                raise NotDrillable(error.message, error.hint) from error
            with _errors(one.path):
                os.chmod(one.path, 0o600)  # it will have a guest's data
        for path in map(Path, self._nvram(xml)):
            content = self.point.disks[NVRAM_TARGET].content
            variables = content.read(0, min(content.size, NVRAM_LIMIT))
            with _errors(str(path)):
                path.touch(0o600)
                path.write_bytes(variables)


@dataclass(frozen=True)
class RunningGuest:
    """A guest that runs on a restore point, with this XML."""

    xml: str
    directory: Path
    point: ShownPoint
    server: Server
    failed: Sequence[BackupError]

    def check(self) -> None:
        """Raise BackupError if it cannot go on; NotDrillable if that proves nothing about its data."""
        self.server.check()
        self.point.check()
        if self.failed:
            raise self.failed[0]
        _require_answers(self.point, self.server.oldest())
        if (free := _free(str(self.directory))) < RESERVE:
            raise NotDrillable(f"the guest fills DRILL_DIR: {size_text(free)} are left", _HINT)

    def check_end(self, has_agent: bool) -> None:
        """Raise BackupError if nothing follows from what it has done when its time is up."""
        self.check()
        _require_answers(self.point, self.server.oldest(), SLOW)
        if not has_agent and not self.server.has_read:
            hint = "boot it with --boot and DRILL_POOL, or restore it as a copy and check its console"
            raise NotDrillable("the guest has read nothing of its disks, and has no agent", hint)


def _require_alone(what: str, header: bytes, qcow2: bool) -> None:
    """Raise NotDrillable if this header of a qcow2 image names a file that QEMU would open.

    A disk's backing file is not one: the definition has it.
    """
    needed = needed_file(header) if qcow2 else ""
    if needed == "a data file" or (needed and what.lower() == NVRAM_TARGET):
        raise NotDrillable(f"{what}: its header names {needed} of this node", "restore it as a copy")


def _require_answers(point: ShownPoint, seconds: float, limit: float = STALL_LIMIT) -> None:
    """Raise BackupError if data is missing or damaged, TransientError for no answer in so many seconds."""
    if damage := point.damage():
        raise BackupError(f"the guest needs what the repository has lost: {damage}", UNREADABLE)
    if seconds > limit:
        hint = "is the repository's host reachable?"
        raise TransientError(f"the repository has not answered for {seconds:.0f} s", hint)


_HINT = "name a directory with room in DRILL_DIR; a systemd unit needs it in ReadWritePaths="


def _free(directory: str) -> int:
    """Return the free space in bytes. Raises NotDrillable."""
    with _errors(directory):
        found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


@contextmanager
def _errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotDrillable(f"cannot use {path} (DRILL_DIR): {reason(error)}", _HINT) from error


def _size(disk: File, kind: str) -> int:
    """Return the size in bytes of the guest's disk: a qcow2 image has one of its own."""
    if kind == "qcow2":
        header = bytes(disk.content.read(0, SIZE_OFFSET + SIZE_LENGTH))
        if header[: len(MAGIC)] == MAGIC:
            return int.from_bytes(header[SIZE_OFFSET:], "big")
    return size_of(disk)
