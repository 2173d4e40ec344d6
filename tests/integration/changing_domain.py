"""A shut-off domain whose disks are images of many kinds, and change at random."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import rados
import rbd

from tests.integration.node import Node
from tests.integration.random_changes import change
from tests.lab import Lab, RbdDisk

MIB = 1 << 20
NAME = "changing"
LARGEST = 44 * MIB  # three segments
KINDS: Mapping[str, Sequence[str]] = {
    "vda": (),
    "vdb": ("--object-size", "64K"),
    "vdc": ("--object-size", "32M", "--image-feature", "layering"),
    "vdd": ("--stripe-unit", "64K", "--stripe-count", "5", "--data-pool", "ssd"),
    "vde": ("clone",),
}
CHANGES = 4  # of an image in a round


class ChangingDomain:
    """The domain, and its images in the pool vms."""

    def __init__(self, lab: Lab, pool: Any) -> None:
        self._lab = lab
        self._pool = pool
        self._random = random.Random(NAME)

    @staticmethod
    def image(target: str) -> str:
        return f"{NAME}-{target}"

    def change(self) -> None:
        """Change each image a little."""
        for target in KINDS:
            with rbd.Image(self._pool, self.image(target)) as image:
                change(image, self._random, CHANGES, LARGEST)

    def roll_back(self, target: str) -> None:
        """Take an image back to what it was in the beginning."""
        with rbd.Image(self._pool, self.image(target)) as image:
            image.rollback_to_snap("beginning")

    def flatten(self, target: str) -> None:
        with rbd.Image(self._pool, self.image(target)) as image:
            image.flatten()

    def require_saved(self, node: Node, directory: Path) -> None:
        """Restore the newest restore point by hand, and hold each disk against the snapshot that was kept."""
        run = f"run={node.report()['run']}"
        (snapshot,) = node.snapshots(run)
        node.restic("restore", snapshot["id"], "--target", str(directory))
        for target in KINDS:
            spec = f"vms/{self.image(target)}"
            (kept,) = [name for name in self._snapshots(target) if ".kept." in name]
            line = 'cmp <(cat "$1"/*/*) <(rbd export --no-progress "$2" -)'
            command = ["bash", "-c", line, "bash", str(directory / target), f"{spec}@{kept}"]
            environment = {"CEPH_CONF": str(self._lab.ceph_conf), "PATH": "/usr/bin:/bin", "LC_ALL": "C"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{spec}: {done.stdout}{done.stderr}"

    def _snapshots(self, target: str) -> Sequence[str]:
        with rbd.Image(self._pool, self.image(target), read_only=True) as image:
            return [one["name"] for one in image.list_snaps()]

    def remove(self) -> None:
        for target in KINDS:
            with suppress(subprocess.CalledProcessError):
                self._lab.rbd("snap", "purge", "--no-progress", f"vms/{self.image(target)}")
                self._lab.delete_image(f"vms/{self.image(target)}")


@contextmanager
def changing_domain(lab: Lab) -> Iterator[ChangingDomain]:
    """Have the domain for the block."""
    with ExitStack() as stack:
        cluster = stack.enter_context(rados.Rados(conffile=str(lab.ceph_conf)))
        pool = stack.enter_context(cluster.open_ioctx("vms"))
        domain = ChangingDomain(lab, pool)
        stack.callback(lab.delete_image, f"vms/{NAME}-parent")
        stack.callback(lab.rbd, "snap", "purge", "--no-progress", f"vms/{NAME}-parent")
        stack.callback(domain.remove)
        lab.create_image(f"vms/{NAME}-parent", 30 * MIB)
        with rbd.Image(pool, f"{NAME}-parent") as parent:
            parent.write(random.Random(0).randbytes(3 * MIB), 15 * MIB)
            parent.create_snap("base")
        for target, options in KINDS.items():
            spec = f"vms/{domain.image(target)}"
            if "clone" in options:
                lab.rbd("clone", "--rbd-default-clone-format", "2", f"vms/{NAME}-parent@base", spec)
            else:
                lab.create_image(spec, 40 * MIB + 513, *options)
        domain.change()
        lab.rbd("snap", "create", "--no-progress", f"vms/{domain.image('vda')}@beginning")
        lab.define_domain(NAME, [RbdDisk(target, f"vms/{domain.image(target)}") for target in KINDS])
        stack.callback(lab.undefine_domain, NAME)
        yield domain
