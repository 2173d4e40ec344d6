"""The command files: lists and copies files of a guest's file systems, out of a restore point.

Its disks are mounted as files in a private namespace, where only the programs that it starts see them. No
file system of a guest is ever mounted.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Optional

from ..command import COMMAND
from ..errors import BackupError, reason
from ..model import Level
from ..mount.file_system import FileSystem, served
from ..mount.read_errors import ReadErrors
from ..mount.shown_file import File
from ..mount.shown_point import ShownPoint, shown_point
from ..protocols import Output, Reporter
from ..settings import Settings
from ..system.mounts import unshare_mounts
from ..system.private_directory import make_private
from ..system.stop_request import StopRequest
from .copy_out import CopyOut, named_after, require_room_for
from .encrypted import key_in
from .entries import NotFound, Systems
from .ext import ExtSystems
from .guestfish import SUBVOLUME, OtherSystems, other_systems
from .order import FilesOrder, Result, wrong_use
from .volumes import Volume, volumes

MOUNTPOINT = "files"  # in RUNTIME_DIR
READ_HINT = "the reasons are above; another restore point may be undamaged"


@dataclass(frozen=True)
class Files:
    """Carries out an order. `key`: the passphrase in the order's file."""

    order: FilesOrder
    settings: Settings
    output: Output
    reporter: Reporter
    stop: StopRequest
    key: str = field(default="", repr=False)

    @cached_property
    def _failed(self) -> ReadErrors:
        return ReadErrors(self.reporter, self.stop)

    def carry_out(self) -> Result:
        """List the file systems, or a directory, or copy. Raises BackupError."""
        self.order.require_consistent()
        with_key = replace(self, key=key_in(self.order.key)) if self.order.key else self
        with ThreadPoolExecutor(1, thread_name_prefix="files") as thread:  # it has a namespace of its own
            try:
                return thread.submit(with_key._carry_out).result()
            finally:
                self.stop.check()  # before a result, or an error, that the stop has caused

    def _carry_out(self) -> Result:
        limit = self.settings.output_stall_timeout
        with shown_point(self.output, self.order.domain, self.order.at, limit, self.stop.check) as point:
            disks = self._selected_disks(point)
            with self._mounted(point, disks) as directory:
                found = self._selected_volumes(Path(directory), disks)
                return self._read(found, point.saved.name) if self.order.path else Result(found)

    def _selected_disks(self, point: ShownPoint) -> dict[str, File]:
        if "/" in self.order.disk:  # a volume of LVM, or a subvolume, may be on several
            return dict(point.disks)
        disks = {target: one for target, one in point.disks.items() if self.order.disk.startswith(target)}
        if self.order.disk and not disks:
            message = f"the restore point has no disk {self.order.disk}, only {', '.join(point.disks)}"
            raise wrong_use(message, "name one of them, or a partition, such as vda1")
        return disks or dict(point.disks)

    def _selected_volumes(self, directory: Path, disks: Mapping[str, File]) -> Sequence[Volume]:
        """Return those of --disk, or what cannot be read and may have it. Raises ConfigError."""
        every = [
            volume
            for target, disk in disks.items()
            for volume in volumes(
                target,
                directory / disk.name,
                self.stop.check,
                partial(self._failed.count, disk),
            )
        ]
        found = [
            one for one in every if self.order.disk in ("", one.disk, one.name) or "/" in self.order.disk
        ]
        if not (found := found or [one for one in every if one.unread]):
            raise wrong_use(f"there is no {self.order.disk}", f"`{COMMAND} files DOMAIN` lists them")
        return found

    @contextmanager
    def _mounted(self, point: ShownPoint, disks: dict[str, File]) -> Iterator[str]:
        """Mount the disks' files, visible to this thread and what it starts, and return the directory."""
        directory = Path(self.settings.runtime_dir, MOUNTPOINT)
        try:
            unshare_mounts()
            make_private(directory)
        except OSError as error:
            raise BackupError(f"cannot mount on {directory}: {reason(error)}", "run it as root") from error
        with served(FileSystem([*disks.values()], point.time_ns, self._failed.report), str(directory)):
            yield str(directory)

    def _read(self, found: Sequence[Volume], domain: str) -> Result:
        """List or copy what the path leads to, in the only file system that has it."""
        errors = {one.name: _unread(one) for one in found if one.unread}
        locked = [volume.name for volume in found if volume.is_encrypted]
        result = None if self.key else self._read_ext(found, domain, errors)
        if not result and (self.key or any(volume.needs_libguestfs for volume in found)):
            self._require_guestfish(found, errors)
            with self._other_systems(found, domain) as systems:
                locked = sorted({*locked, *systems.locked})
                if "/" in self.order.disk and not systems.devices:
                    raise self._no_volume(locked, errors)
                result = self._read_one(systems, domain, errors)
        elif "/" in self.order.disk:
            raise self._no_volume(locked, errors)
        if not result:
            raise self._not_found(found, locked, errors)
        return result

    def _not_found(
        self, found: Sequence[Volume], locked: Sequence[str], errors: Mapping[str, BackupError]
    ) -> BackupError:
        """Return why the path was not found."""
        if errors:
            return next(iter(errors.values()))
        if self._failed.counted:
            return BackupError(f"{self.order.path}: not all of the disks can be read", READ_HINT)
        place = self.order.disk if "/" in self.order.disk else _listed(found)
        message = f"{self.order.path} does not exist on {place}"
        hints = (self._key_hint(locked), _journal_hint(found))
        return BackupError(message, "; ".join(filter(None, hints)) or "list the directory above it")

    def _no_volume(self, locked: Sequence[str], errors: Mapping[str, BackupError]) -> BackupError:
        """Return the error that --disk names a volume of LVM, or a subvolume, which is not there."""
        if errors:
            return next(iter(errors.values()))
        hint = f"`{COMMAND} files DOMAIN` lists the disks and partitions; of LVM it is GROUP/VOLUME"
        return wrong_use(f"there is no {self.order.disk}", self._key_hint(locked) or hint)

    def _key_hint(self, locked: Sequence[str]) -> str:
        return f"{', '.join(locked)}: encrypted, read with --key FILE" if locked and not self.key else ""

    def _read_ext(
        self, found: Sequence[Volume], domain: str, errors: dict[str, BackupError]
    ) -> Optional[Result]:
        """Do the same in the ext file systems; None if none of them has the path."""
        readable = [volume for volume in found if volume.is_ext and "/" not in self.order.disk]
        result = self._read_one(ExtSystems(readable, self.stop.check), domain, errors)
        if result:
            self._warn(next(one for one in readable if one.name == result.name), found, domain)
        return result

    def _warn(self, volume: Volume, found: Sequence[Volume], domain: str) -> None:
        """Report what may be missing in what an ext file system has of the path."""
        if volume.needs_recovery:
            text = f"{volume.name} was saved in use, its journal is not replayed: new files may be damaged"
            self.reporter.message(Level.WARNING, domain, text)
        if others := [one for one in found if one.needs_libguestfs or one.is_encrypted]:
            text = f"{self.order.path} is of {_listed([volume])}; not searched: {_listed(others)}"
            self.reporter.message(Level.WARNING, domain, f"{text}; --disk names one of them")

    def _require_guestfish(self, found: Sequence[Volume], errors: Mapping[str, BackupError]) -> None:
        """Raise BackupError if it is missing: what is known without it, and what only it can read."""
        if shutil.which("guestfish"):
            return
        if errors:
            raise next(iter(errors.values()))
        unread = [one for one in found if one.needs_libguestfs or one.is_encrypted] or found
        hint = "apt-get install guestfish; or `mount` shows the disks as files"
        searched = [] if self.key or "/" in self.order.disk else [one for one in found if one.is_ext]
        if not searched:
            raise BackupError(f"only libguestfs can read {_listed(unread)}", hint)
        message = f"{self.order.path} does not exist on {_listed(searched)}; not searched: {_listed(unread)}"
        check = _journal_hint(searched) or "check the path"
        raise BackupError(message, f"{check}; the others need libguestfs: {hint}")

    @contextmanager
    def _other_systems(self, found: Sequence[Volume], domain: str) -> Iterator[OtherSystems]:
        """Have libguestfs read those that were not read yet, and with a key all."""
        text = "searching with libguestfs, which starts a virtual machine for that"
        self.reporter.message(Level.INFO, domain, text)
        disks = {volume.disk: volume.path for volume in found}
        searched = [] if self.key else [volume.name for volume in found if volume.is_ext]
        with other_systems(disks, self.stop.check, self.key) as systems:
            selected = self._selected_systems(systems.devices, [*disks])
            devices = {name: device for name, device in selected.items() if name not in searched}
            yield replace(systems, devices=devices)

    def _selected_systems(self, devices: Mapping[str, str], disks: Sequence[str]) -> Mapping[str, str]:
        """Return those of --disk: of a disk all, of a partition what is on it, volumes of LVM too."""
        disk = self.order.disk
        if disk in devices:
            return {disk: devices[disk]}
        if disk in ("", *disks):
            return devices
        return {name: device for name, device in devices.items() if _may_be_on(disk, name, device, disks)}

    def _read_one(self, systems: Systems, domain: str, errors: dict[str, BackupError]) -> Optional[Result]:
        """List or copy what the path leads to; None if none of these file systems has it.

        `errors` gets those of file systems that cannot be read, by their names.
        """
        having = self._having_path(systems, errors)
        if not having:
            return None
        for name, error in errors.items():
            self.reporter.message(Level.WARNING, domain, f"{name} was not searched: {error}")
        if len(having) > 1:
            message = f"{self.order.path} is in several file systems: {', '.join(having)}"
            raise wrong_use(message, "name one with --disk")
        with systems.opened(having[0]) as files:
            entry = files.find(os.fsencode(self.order.path))
            if not self.order.to:
                return Result(name=having[0], entries=files.entries(entry) if entry.is_directory else [entry])
            entry = named_after(self.order.path, entry)
            require_room_for(entry, self.order.to)
            copy = CopyOut(files, domain, self.reporter, self.stop.check)
            return Result(name=having[0], copied=copy.copy(entry, self.order.to))

    def _having_path(self, systems: Systems, errors: dict[str, BackupError]) -> Sequence[str]:
        """Return the file systems that have the path."""
        having = []
        for name in systems.names:
            try:
                with systems.opened(name) as files:
                    files.find(os.fsencode(self.order.path))
                    having.append(name)
            except NotFound:
                continue
            except BackupError as error:
                self.stop.check()  # before an error that the stop has caused
                errors[name] = error
        return having


def _listed(found: Sequence[Volume]) -> str:
    return ", ".join(f"{one.name} ({one.kind or 'unknown'})" for one in found)


def _may_be_on(partition: str, name: str, device: str, disks: Sequence[str]) -> bool:
    """Return whether a file system may be on a partition, as a volume of LVM may be, or a subvolume of it."""
    of_a_disk = re.match(rf"({'|'.join(map(re.escape, disks))})[0-9]*/", name)
    if device.startswith(SUBVOLUME) and of_a_disk:
        return name.startswith(f"{partition}/")
    return "/" in name and "/" not in partition


def _journal_hint(found: Sequence[Volume]) -> str:
    names = ", ".join(one.name for one in found if one.needs_recovery)
    text = "saved in use, its journal is not replayed: new files may be missing; the restored disk has them"
    return f"{names}: {text}" if names else ""


def _unread(volume: Volume) -> BackupError:
    return BackupError(f"{volume.name} cannot be read", READ_HINT)
