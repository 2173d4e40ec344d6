"""A repository in a namespace of the lab's second pool, looked at with rbd alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import rados
import rbd

from tests.integration.node import Node
from tests.lab import Lab

POOL, NAMESPACE = "ssd", "backups"
PLACE = f"{POOL}/{NAMESPACE}"
DEFINITION = ".definition"


class Repository:
    """The images in the namespace."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def images(self) -> Sequence[str]:
        return [str(name) for name in json.loads(self.lab.rbd("ls", "--format", "json", PLACE))]

    def snapshots(self, name: str) -> Sequence[str]:
        listed = json.loads(self.lab.rbd("snap", "ls", "--format", "json", f"{PLACE}/{name}"))
        assert all(one["protected"] == "true" for one in listed), listed
        return [str(one["name"]) for one in listed]

    def disk(self, target: str) -> str:
        """Give the name of the only image of a disk with this target."""
        (name,) = [one for one in self.images() if one.endswith(f".{target}")]
        return name

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write into an image as somebody else would."""
        with (
            rados.Rados(conffile=str(self.lab.ceph_conf)) as cluster,
            cluster.open_ioctx(POOL) as pool,
        ):
            pool.set_namespace(NAMESPACE)
            with rbd.Image(pool, name) as image:
                image.write(data, offset)

    def lose(self, name: str, offset: int) -> None:
        """Remove the RADOS object that has an image's data at an offset."""
        with (
            rados.Rados(conffile=str(self.lab.ceph_conf)) as cluster,
            cluster.open_ioctx(POOL) as pool,
        ):
            pool.set_namespace(NAMESPACE)
            with rbd.Image(pool, name, read_only=True) as image:
                found = image.stat()
            pool.remove_object(f"{found['block_name_prefix']}.{offset // found['obj_size']:016x}")

    def require_same(self, spec: str, other: str) -> None:
        """Compare two images or snapshots with rbd export."""
        line = 'cmp <(rbd export --no-progress "$1" -) <(rbd export --no-progress "$2" -)'
        environment = {"CEPH_CONF": str(self.lab.ceph_conf), "PATH": "/usr/bin:/bin", "LC_ALL": "C"}
        done = subprocess.run(
            ["bash", "-c", line, "bash", spec, other],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{spec} {other}: {done.stdout}{done.stderr}"

    def clear(self) -> None:
        for name in self.images():
            spec = f"{PLACE}/{name}"
            for snapshot in json.loads(self.lab.rbd("snap", "ls", "--format", "json", spec)):
                if snapshot["protected"] == "true":
                    self.lab.rbd("snap", "unprotect", f"{spec}@{snapshot['name']}")
            self.lab.rbd("snap", "purge", "--no-progress", spec)
            self.lab.rbd("rm", "--no-progress", spec)


@contextmanager
def rbd_repository(lab: Lab, node: Node) -> Iterator[Repository]:
    """Have the node save into an empty repository during the block; nothing of it is left."""
    lab.rbd("namespace", "create", PLACE)
    repository = Repository(lab)
    node.constants.update(OUTPUT="rbd", RBD_OUTPUT_POOL=PLACE)
    try:
        yield repository
        done = node.run("cleanup", "--all")
        assert done.returncode == 0, done.stderr
    finally:
        repository.clear()
        lab.rbd("namespace", "rm", PLACE)


def exported(lab: Lab, spec: str, path: Path) -> bytes:
    """Give what is in an image or snapshot."""
    lab.rbd("export", "--no-progress", spec, str(path))
    return path.read_bytes()
