"""Images of guests: file systems made of a directory, and partition tables."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ..memory_snapshot import MemorySnapshot
from ..samples import MIB

SECTOR = 512
PIECE = 4 * MIB


def run(*command: object, given: str = "") -> None:
    done = subprocess.run(list(map(str, command)), input=given, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def ext4(image: Path, content: Path, *options: str, size: str = "32M") -> Path:
    """Make a file system with what is in a directory."""
    run("mkfs.ext4", "-q", *options, "-d", content, image, size)
    return image


def change(image: Path, *commands: str) -> None:
    """Change a file system as its kernel never would, with commands of debugfs."""
    run("debugfs", "-w", "-f", "-", image, given="".join(f"{command}\n" for command in commands))


def replace_bytes(image: Path, old: bytes, new: bytes) -> None:
    content = image.read_bytes()
    assert old in content
    image.write_bytes(content.replace(old, new))


def partitioned(disk: Path, table: str, parts: dict[int, Path]) -> Path:
    """Make a disk with a partition table of sfdisk's, and files at these sectors."""
    run("truncate", "--size=160M", disk)
    run("sfdisk", "--quiet", disk, given=table)
    for sector, image in parts.items():
        run("dd", f"if={image}", f"of={disk}", f"seek={sector}", "conv=notrunc,sparse", "status=none")
    return disk


def snapshot(image: Path) -> MemorySnapshot:
    """Give an image as a snapshot, with its data in pieces."""
    content = image.read_bytes()
    pieces = {start: content[start : start + PIECE] for start in range(0, len(content), PIECE)}
    return MemorySnapshot(len(content), {start: data for start, data in pieces.items() if any(data)})
