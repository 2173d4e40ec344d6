"""Talks to guestfish (libguestfs), which reads what Linux can read, in a virtual machine of its own."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable

from ..errors import BackupError
from ..system.process_group import Group, kill
from ..system.started_program import inherited
from .encrypted import Encrypted
from .entries import MOST_ENTRIES, Entry, NotFound, Unread, shown
from .guestfish_command import Command, is_device, quoted
from .session import UNSOUND, Session, SessionEnded, session

# What its appliance is made with and run by; guestfs(3), "ENVIRONMENT VARIABLES".
INHERITED = (
    "LIBGUESTFS_BACKEND_SETTINGS",
    "LIBGUESTFS_CACHEDIR",
    "LIBGUESTFS_MEMSIZE",
    "LIBGUESTFS_TMPDIR",
    "SUPERMIN_KERNEL",
    "SUPERMIN_MODULES",
    "TMPDIR",
)
NO_FILES = ("swap", "unknown", "crypto_LUKS")  # of `list-filesystems`
SUBVOLUME = "btrfsvol:"  # what begins the name of one
NO_NAMES = (b"", b".", b"..")
LONGEST_NAME = 4096  # bytes, more than any file system has
BATCH = 50  # questions at a time: they, and their answers, fit into a pipe
BATCH_BYTES = 1 << 15
FIELD = re.compile(rb"^st_(\w+): (-?\d+)$", re.MULTILINE)
ORIGIN = re.compile(r"^\*stdin\*:\d+: libguestfs: error: ")  # of an error
MISSING = re.compile("no such file or directory|not a directory|too many levels", re.IGNORECASE)


class Guestfish(Session):
    """A running guestfish."""

    def interrupt(self) -> None:
        """Kill its virtual machine: it then fails, and removes its temporary files."""
        for process in Group.led_by(self.pid).members():
            with suppress(OSError):  # it has just ended
                if Path(f"/proc/{process.pid}/comm").read_text().startswith("qemu"):
                    kill(process)

    def error_in(self, line: str) -> str:
        return ORIGIN.sub("", line)

    def ask(self, *commands: Command) -> bytes:
        """Return the output of commands. Raises BackupError if one has printed an error."""
        return self.joined(self.stream(*commands))

    def stream(self, *commands: Command) -> Iterator[bytes]:
        """Yield the output of commands. Raises BackupError if one has printed an error."""
        token = secrets.token_hex(16)
        end = Command("echo", token.encode())
        return self.between("".join(one.lines for one in (*commands, end)), "", f"{token}\n")


@dataclass(frozen=True)
class GuestEntry(Entry):
    """An entry with its place, the path up to its name in the guest: `name` may be another one.

    `seconds` is the time of the last change of its content, since 1970.
    """

    __slots__ = ("device", "place", "place_name", "seconds")  # as Entry
    place: bytes
    place_name: bytes
    device: int
    seconds: int

    @property
    def path(self) -> bytes:
        return self.place + self.place_name

    @property
    def identity(self) -> tuple[int, int]:
        return self.device, self.inode  # each subvolume of btrfs counts its inodes anew


class GuestfishFiles:
    """The files of the file system that guestfish has mounted. Satisfies entries.GuestFiles."""

    def __init__(self, guestfish: Guestfish) -> None:
        self._guestfish = guestfish

    def find(self, path: bytes) -> Entry:
        try:
            real = self._guestfish.ask(Command("realpath", b"/" + path))[:-1]
            place, _, name = real.rpartition(b"/")
            return self._described(place + b"/", [name])[0]
        except BackupError as error:
            if MISSING.search(error.message):
                raise NotFound(f"{shown(path)} does not exist", "list the directory above it") from error
            raise

    def entries(self, directory: Entry) -> Sequence[Entry]:
        place = _path(directory).rstrip(b"/") + b"/"
        return self._entries(place, sorted(name for name in self._names(place) if name not in NO_NAMES))

    def _names(self, place: bytes) -> Sequence[bytes]:
        """Return what `ls0` prints. Raises BackupError."""
        parts = self._guestfish.stream(Command("ls0", place, b"-"))
        found: list[bytes] = []
        rest = b""
        try:
            for part in parts:
                *names, rest = (rest + part).split(b"\0")
                found += names
                if len(found) > MOST_ENTRIES:
                    raise BackupError(f"a directory with more than {MOST_ENTRIES} entries", UNSOUND)
                if len(rest) > LONGEST_NAME:
                    raise BackupError("a directory has a name that none can have", UNSOUND)
        finally:
            self._guestfish.skip(parts)
        return [*found, rest]

    def content(self, file: Entry) -> Iterator[bytes]:
        return self._guestfish.stream(Command("download", _path(file), b"-"))

    def link_target(self, link: Entry) -> bytes:
        return self._guestfish.ask(Command("readlink", _path(link)))[:-1]

    def changed(self, entry: Entry) -> int:
        assert isinstance(entry, GuestEntry)
        return entry.seconds

    def _entries(self, place: bytes, names: Sequence[bytes]) -> Sequence[Entry]:
        """Describe these entries of a directory; those that cannot be read are at the end.

        Raises BackupError if none can be read.
        """
        if any(b"/" in name for name in names):
            raise BackupError("a directory has a name with a slash in it", UNSOUND)
        found: list[Entry] = []
        errors: list[BackupError] = []
        for batch in _batches(place, names):
            try:
                found += self._described(place, batch)
            except SessionEnded:
                raise
            except BackupError:
                found += self._one_by_one(place, batch, errors)
        if errors and not found:
            raise errors[0]
        return [*found, *(Unread(0, 0, 0, 0, b"", 0, error) for error in errors)]

    def _one_by_one(
        self, place: bytes, names: Sequence[bytes], errors: list[BackupError]
    ) -> Iterator[GuestEntry]:
        """Describe those entries that can be read; `errors` gets why others cannot."""
        for name in names:
            try:
                yield from self._described(place, [name])
            except SessionEnded:
                raise
            except BackupError as error:
                errors.append(BackupError(f"{shown(name)}: {error.message}", error.hint))

    def _described(self, place: bytes, names: Sequence[bytes]) -> Sequence[GuestEntry]:
        """Describe entries of a directory. Raises BackupError if one cannot be read."""
        questions = [Command("lstatns", place + name) for name in names]
        answers = re.split(rb"(?m)^(?=st_dev: )", self._guestfish.ask(*questions))[1:]
        if len(answers) != len(names):
            raise BackupError(f"guestfish described {len(answers)} of {len(names)} entries", UNSOUND)
        return [_entry(place, name, dict(FIELD.findall(answer))) for name, answer in zip(names, answers)]


def _batches(place: bytes, names: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield as many names as can be asked for at a time."""
    batch: list[bytes] = []
    size = 0
    for name in names:
        batch.append(name)
        size += len(quoted(place + name))
        if len(batch) == BATCH or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


def _entry(place: bytes, name: bytes, fields: dict[bytes, bytes]) -> GuestEntry:
    mode = int(fields[b"mode"])
    return GuestEntry(
        inode=int(fields[b"ino"]),
        mode=mode,
        owner=int(fields[b"uid"]),
        group=int(fields[b"gid"]),
        name=name or b"/",
        size=0 if stat.S_ISDIR(mode) else int(fields[b"size"]),
        place=place,
        place_name=name,
        device=int(fields[b"dev"]),
        seconds=int(fields[b"mtime_sec"]),
    )


def _path(entry: Entry) -> bytes:
    assert isinstance(entry, GuestEntry)
    return entry.path


@dataclass(frozen=True)
class OtherSystems:
    """The file systems that guestfish finds, by their names, with its devices. Satisfies entries.Systems.

    `locked` are the names of encrypted devices that were not opened.
    """

    guestfish: Guestfish
    devices: Mapping[str, str]
    locked: Sequence[str] = ()

    @property
    def names(self) -> Sequence[str]:
        return [*self.devices]

    @contextmanager
    def opened(self, name: str) -> Iterator[GuestfishFiles]:
        device = self.devices[name]
        if not is_device(device) and not device.startswith(SUBVOLUME):  # those have names of any bytes
            raise BackupError("no device of Linux has such a name: it was not touched", UNSOUND)
        self.guestfish.ask(Command("umount-all"), Command("mount-ro", os.fsencode(device), b"/"))
        yield GuestfishFiles(self.guestfish)


@contextmanager
def other_systems(
    disks: Mapping[str, Path], check_stop: Callable[[], None], key: str = ""
) -> Iterator[OtherSystems]:
    """Start a virtual machine with these disks during the block; a key opens what is encrypted.

    Raises BackupError.
    """
    environment = {"LIBGUESTFS_BACKEND": "direct", **inherited(INHERITED)}
    options = ("--ro", "--format=raw", "--keys-from-stdin")
    command = ("guestfish", *options, *(f"--add={path}" for path in disks.values()))
    with session(Guestfish, command, check_stop, environment) as running:
        running.ask(Command("run"))
        encrypted = Encrypted(running.ask)
        encrypted.open_all(key)
        named = partial(_name, [*disks], encrypted.opened)
        locked = [*map(named, encrypted.locked)]
        if key and not encrypted.opened:
            raise _no_use(locked, encrypted)
        listed = os.fsdecode(
            running.ask(Command("list-filesystems"))
        )  # with names of subvolumes, of any bytes
        found = (line.rpartition(": ") for line in listed.split("\n"))
        devices = [device for device, _, kind in found if device and kind not in NO_FILES]
        yield OtherSystems(running, {named(one): one for one in devices}, locked)


def _no_use(locked: Sequence[str], encrypted: Encrypted) -> BackupError:
    """Return the error that a key has opened none of the devices of these names."""
    if not locked:
        return BackupError("nothing is encrypted with LUKS", "leave out --key, or check --disk")
    why = next(iter(encrypted.locked.values()))
    return BackupError(f"the key does not open {', '.join(locked)}: {why}", "check --key and --disk")


def _name(targets: Sequence[str], opened: Mapping[str, str], device: str) -> str:
    """Return a name with the guest's disk instead of the virtual machine's: /dev/sdb1, or VG/LV.

    What was `opened` has the name of the device that is encrypted.
    """
    path = device.partition(":")[2] or device  # of btrfs: the subvolume's
    for new, encrypted in opened.items():
        if path == new or path.startswith(f"{new}/"):
            path = encrypted + path[len(new) :]
    drive = re.match(r"/dev/sd([a-z])(?![a-z])", path)
    if drive and (number := ord(drive[1]) - ord("a")) < len(targets):
        return targets[number] + path[drive.end() :]
    return path.removeprefix("/dev/")
