"""Reads what the guest wrote from a copy of one of its disks, for instance a restored image."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.lab.programs import run_program

FEATURES_OFFSET = 1024 + 0x60  # in the superblock, little endian: the incompatible features
NEEDS_RECOVERY = 0x4
CHECK_EXIT_CODES = (0, 1)  # clean, or made clean by replaying the journal


def tick_on(image: Path) -> int:
    """The counter in an image file; fails when its ext4 is damaged. The file is not changed."""
    with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
        copy = Path(scratch) / "copy"
        run_program("cp", "--sparse=always", image, copy)
        run_program("e2fsck", "-f", "-p", copy, accepted=CHECK_EXIT_CODES)
        return int(run_program("debugfs", "-R", "cat tick", copy))


def needs_recovery(image: Path) -> bool:
    """Whether the journal must be replayed: not after a freeze, but after a pause or a crash."""
    with image.open("rb") as file:
        file.seek(FEATURES_OFFSET)
        return bool(int.from_bytes(file.read(4), "little") & NEEDS_RECOVERY)
