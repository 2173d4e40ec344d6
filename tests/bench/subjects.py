"""What is backed up: images with data here and there, each with a snapshot and a domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Lab, RbdDisk
from tests.lab.sample import make_image

GIB = 1 << 30
OBJECT = 4 << 20
POOL = "vms"
SNAPSHOT = "bench"


@dataclass(frozen=True)
class Subject:
    """An image with the snapshot that others than this program read, and its domain. Sizes in bytes.

    `file` is where the same bytes lie, for restic alone.
    """

    name: str
    size: int
    data: int
    file: Path

    @property
    def spec(self) -> str:
        return f"{POOL}/{self.name}"


def spread(size: int, data: int) -> Mapping[int, int]:
    """Give so many bytes of data in whole objects at equal distances: lengths by their offsets."""
    count = data // OBJECT
    step = size // count // OBJECT * OBJECT or OBJECT
    return {number * step: OBJECT for number in range(count)}


@contextmanager
def subject(lab: Lab, directory: Path, name: str, size: int, data: Mapping[int, int]) -> Iterator[Subject]:
    """Make the image of random data, its snapshot and its domain, which is shut off, for the block."""
    made = Subject(f"bench-{name}", size, sum(data.values()), directory / f"{name}.img")
    make_image(lab, made.spec, size, data)
    try:
        lab.rbd("snap", "create", "--no-progress", f"{made.spec}@{SNAPSHOT}")
        lab.define_domain(made.name, [RbdDisk("vda", made.spec)])
        yield made
    finally:
        if made.name in lab.virsh("list", "--all", "--name").split():
            lab.undefine_domain(made.name)
        lab.rbd("snap", "purge", "--no-progress", made.spec)
        lab.delete_image(made.spec)


@contextmanager
def in_a_file(lab: Lab, made: Subject) -> Iterator[None]:
    """Have the same bytes in the subject's file during the block."""
    try:
        lab.rbd("export", "--no-progress", f"{made.spec}@{SNAPSHOT}", str(made.file))
        yield
    finally:
        made.file.unlink(missing_ok=True)
