"""A directory with restore points, looked at with qemu-img alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.integration.node import Node


class Repository:
    """The files in the directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def files(self) -> Sequence[str]:
        """List all files and directories, but for locks."""
        found = (path for path in self.path.rglob("*") if path.name != ".lock")
        return sorted(str(path.relative_to(self.path)) for path in found)

    def runs(self) -> Sequence[str]:
        """List the directories of the only domain whose names say that they are complete."""
        (domain,) = [one for one in self.path.iterdir() if one.is_dir()]
        return sorted(path.name for path in domain.iterdir() if not path.name.startswith("."))

    def disk(self, run: str, target: str = "vda") -> Path:
        """Give the file of a disk of the only domain with such a restore point."""
        (path,) = self.path.glob(f"*/{run}/{target}.*")
        return path

    def require_same(self, raw: Path, run: str, target: str = "vda") -> None:
        """Check a disk, and compare it with a raw file; trailing zeros to the end of a sector are none."""
        path = self.disk(run, target)
        if path.suffix == ".qcow2":
            qemu_img("check", "-q", path)
        qemu_img("compare", "-f", "raw", "-F", path.suffix[1:], raw, path)

    def chain(self, run: str, target: str = "vda") -> Sequence[str]:
        """Give the runs of the files that it takes to read a disk."""
        listed = json.loads(qemu_img("info", "--backing-chain", "--output=json", self.disk(run, target)))
        return [Path(one["filename"]).parent.name for one in listed]


@contextmanager
def directory_repository(node: Node, path: Path, kind: str = "qcow2") -> Iterator[Repository]:
    """Have the node save into an empty directory during the block."""
    path.mkdir(exist_ok=True)
    node.constants.update(OUTPUT="directory", DIRECTORY_OUTPUT=str(path), DIRECTORY_FORMAT=kind)
    yield Repository(path)
    done = node.run("cleanup", "--all")
    assert done.returncode == 0, done.stderr
    assert list(node.runtime_dir.glob("nbd-*")) == []


def qemu_img(*words: object) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{words}: {done.stdout}"
    return done.stdout
