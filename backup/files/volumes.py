"""The file systems on a disk: on its partitions, or on all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

from ..errors import BackupError
from .programs import output_of

MOST = 256  # partitions of a disk: for each one a program runs, and a guest's table can claim thousands
SECTOR = 512  # bytes; the unit in which partx prints, whatever the disk's is
SECTORS = (512, 4096)  # bytes that the unit of GPT may have; that of MBR cannot be seen
EXTENDED = ("0x5", "0xf", "0x85")  # types of a partition that holds other ones
EXT = ("ext2", "ext3", "ext4")
ENCRYPTED = "crypto_LUKS"
NO_FILES = ("", "swap", ENCRYPTED)
RECOVER = 4  # the feature that a journal has to be replayed (linux/fs/ext4/ext4.h, s_feature_incompat)
PROBED = (0, 2, 8)  # exit codes of blkid: found, nothing, signatures of several file systems


@dataclass(frozen=True)
class Volume:
    """A part of a disk, in bytes. `partition` is 0 if it is all of it, `kind` "" if that is unknown.

    `damaged`: reads of the disk have failed meanwhile. `beyond`: bytes of a partition that ends so far behind
    the end of its disk, and of which `length` are there.
    """

    disk: str
    partition: int
    path: Path
    offset: int
    length: int
    kind: str
    label: str
    damaged: bool = False
    beyond: int = 0

    @property
    def name(self) -> str:
        """As Linux would name it: vda, vda1."""
        return f"{self.disk}{self.partition or ''}"

    @property
    def is_ext(self) -> bool:
        return self.kind in EXT

    @property
    def needs_libguestfs(self) -> bool:
        """Whether there may be files, which debugfs cannot read."""
        return not self.is_ext and self.kind not in NO_FILES

    @property
    def is_encrypted(self) -> bool:
        return self.kind == ENCRYPTED

    @property
    def unread(self) -> bool:
        """Whether it is unknown because it cannot be read."""
        return self.damaged and not self.kind

    @property
    def needs_recovery(self) -> bool:
        """Whether the journal of an ext file system has what is not in the file system yet."""
        with suppress(OSError), self.path.open("rb", buffering=0) as file:  # it is reported as it fails
            file.seek(self.offset + 1024 + 0x60)
            return self.kind in EXT[1:] and bool(int.from_bytes(file.read(4), "little") & RECOVER)
        return False


def volumes(
    disk: str, path: Path, check_stop: Callable[[], None], read_errors: Callable[[], int] = lambda: 0
) -> Iterator[Volume]:
    """Yield what is on a disk. `read_errors` counts the failed reads of it. Raises BackupError."""
    yield from _Disk(disk, path, path.stat().st_size, check_stop, read_errors).volumes()


@dataclass(frozen=True)
class _Disk:
    name: str
    path: Path
    size: int
    check_stop: Callable[[], None]
    read_errors: Callable[[], int]

    def volumes(self) -> Sequence[Volume]:
        """Return its partitions, or all of it.

        A file system that was on all of the disk before it was partitioned may still be found there. What one
        that is on all of it has at its begin may be taken for a table, but then no partition has a type.
        """
        before = self.read_errors()
        table = next(filter(None, map(self._partitions, SECTORS)), [])
        if any(one.kind for one in table):
            return table
        whole = self._probed(Volume(self.name, 0, self.path, 0, self.size, "", ""))
        if whole.kind or not table:
            table = [*table, replace(whole, damaged=self.read_errors() > before or whole.damaged)]
        return table

    def _partitions(self, sector: int) -> Sequence[Volume]:
        options = ("--raw", "--noheadings", f"--sector-size={sector}", "--output=NR,START,SECTORS,TYPE")
        _, listed = output_of(("partx", *options, str(self.path)), self.check_stop)
        lines, found = listed.splitlines(), []
        if len(lines) > MOST:
            hint = "the guest's partition table may be damaged; `mount` shows the whole disk"
            raise BackupError(f"{self.name} has more than {MOST} partitions", hint)
        for line in lines:
            number, start, sectors, *kind = line.split()
            if not {*kind} & {*EXTENDED}:
                found.append(self._probed(self._partition(int(number), int(start), int(sectors))))
        return found

    def _partition(self, number: int, start: int, sectors: int) -> Volume:
        """Return a partition, as Linux cuts it at the disk's end."""
        offset, length = start * SECTOR, sectors * SECTOR
        there = max(min(length, self.size - offset), 0)
        return Volume(self.name, number, self.path, offset, there, "", "", beyond=length - there)

    def _probed(self, volume: Volume) -> Volume:
        """Return a volume with its kind and label."""
        if not volume.length:
            return volume  # for blkid, 0 would be all that follows
        before = self.read_errors()
        place = (f"--offset={volume.offset}", f"--size={volume.length}")
        command = ("blkid", "--probe", "--output=udev", *place, str(self.path))
        code, listed = output_of(command, self.check_stop)  # it escapes what a guest has chosen
        # at line breaks only: it leaves others, such as U+2028, in a label
        values = dict(line.split("=", 1) for line in listed.split("\n") if "=" in line)
        kind, label = values.get("ID_FS_TYPE", ""), values.get("ID_FS_LABEL", "")
        damaged = self.read_errors() > before or code not in PROBED
        return replace(volume, kind=kind, label=label, damaged=damaged)
