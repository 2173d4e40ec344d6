"""What tests of outputs have in common: backups of the archive, and changes of its only disk."""

from __future__ import annotations

import re

import rados
import rbd

from tests.integration.node import Node
from tests.lab import Lab
from tests.lab.sample import ARCHIVE


def saved(node: Node, *words: str, **constants: object) -> str:
    """Back up, and give what was logged."""
    done = node.run("backup", *words, **constants)
    assert done.returncode == 0, done.stderr
    return done.stderr


def pieces_read(log: str, target: str = "vda") -> tuple[int, int]:
    """Give how many of how many pieces (of restic_incremental: segments) of a disk were read."""
    found = re.search(rf"{target} \(.*\) saved: .*, (\d+) of (\d+) (?:pieces|segments) read", log)
    assert found, log
    return int(found[1]), int(found[2])


def write(lab: Lab, offset: int, data: bytes) -> None:
    """Write to the archive's disk."""
    with (
        rados.Rados(conffile=str(lab.ceph_conf)) as cluster,
        cluster.open_ioctx("vms") as pool,
        rbd.Image(pool, ARCHIVE) as image,
    ):
        image.write(data, offset)
