"""The file systems on a disk: on its partitions, or on all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .programs import output_of

SECTOR = 512  # bytes; the unit of a partition table
EXTENDED = ("0x5", "0xf", "0x85")  # types of a partition that holds other ones
EXT = ("ext2", "ext3", "ext4")
ENCRYPTED = "crypto_LUKS"
NO_FILES = ("", "swap", ENCRYPTED)
RECOVER = 4  # the feature that a journal has to be replayed (linux/fs/ext4/ext4.h, s_feature_incompat)


@dataclass(frozen=True)
class Volume:
    """A part of a disk, in bytes. `partition` is 0 if it is all of it, `kind` "" if that is unknown."""

    disk: str
    partition: int
    path: Path
    offset: int
    length: int
    kind: str
    label: str

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
    def needs_recovery(self) -> bool:
        """Whether the journal of an ext file system has what is not in the file system yet."""
        with suppress(OSError), self.path.open("rb", buffering=0) as file:  # it is reported as it fails
            file.seek(self.offset + 1024 + 0x60)
            return self.kind != "ext2" and bool(int.from_bytes(file.read(4), "little") & RECOVER)
        return False


def volumes(disk: str, path: Path, check_stop: Callable[[], None]) -> Iterator[Volume]:
    """Yield what is on a disk. Raises BackupError."""
    size = path.stat().st_size
    # a file system on all of a disk may look like a partition table too: Windows boots from such
    found = _volume(disk, 0, path, 0, size, check_stop)
    table = [] if found.kind else _partitions(path, size, check_stop)
    yield from [_volume(disk, *part, check_stop) for part in table] or [found]


def _partitions(path: Path, size: int, check_stop: Callable[[], None]) -> list[tuple[int, Path, int, int]]:
    command = ("partx", "--raw", "--noheadings", "--output=NR,START,SECTORS,TYPE", str(path))
    _, listed = output_of(command, check_stop)
    parts = []
    for line in listed.splitlines():
        number, start, sectors, *kind = line.split()
        offset, length = int(start) * SECTOR, int(sectors) * SECTOR
        if not {*kind} & {*EXTENDED} and offset + length <= size:
            parts.append((int(number), path, offset, length))
    return parts


def _volume(
    disk: str, partition: int, path: Path, offset: int, length: int, check_stop: Callable[[], None]
) -> Volume:
    command = ("blkid", "--probe", "--output=udev", f"--offset={offset}", f"--size={length}", str(path))
    _, listed = output_of(command, check_stop)  # it escapes what a guest has chosen
    # at line breaks only: it leaves others, such as U+2028, in a label
    values = dict(line.split("=", 1) for line in listed.split("\n") if "=" in line)
    kind, label = values.get("ID_FS_TYPE", ""), values.get("ID_FS_LABEL", "")
    return Volume(disk, partition, path, offset, length, kind, label)
