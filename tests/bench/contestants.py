"""The ways in which an admin could save an RBD image into restic, as commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

from tests.integration.node import Node
from tests.lab import Lab

from .measure import Cost, TimedRestic, measured
from .subjects import POOL, SNAPSHOT, Subject

# The loop of the classic scripts: object after object, whether there is anything in it or not.
CLASSIC = """
import sys, subprocess, rados, rbd
conf, pool, name, snapshot, restic = sys.argv[1:]
with rados.Rados(conffile=conf) as cluster, cluster.open_ioctx(pool) as ioctx:
    with rbd.Image(ioctx, name, snapshot=snapshot, read_only=True) as image:
        command = [restic, "backup", "--stdin", "--stdin-filename=vda.img", "--quiet"]
        restic = subprocess.Popen(command, stdin=subprocess.PIPE)
        size = image.size()
        for offset in range(0, size, 4 << 20):
            restic.stdin.write(image.read(offset, min(4 << 20, size - offset)))
        restic.stdin.close()
        sys.exit(restic.wait())
"""

# What nobody who saves an image can do without: reading it from the cluster. Nothing is done with the bytes.
READING = """
import sys
from backup.ceph.cluster import Cluster
from backup.model import ClusterAddress, Image
from backup.transfer.backup_stream import pieces
conf, pool, name, snapshot = sys.argv[1:]
with Cluster(ClusterAddress(), "", conf, timeout=60) as cluster:
    with cluster.reader(Image(pool, name), snapshot) as reader:
        for _piece in pieces(reader):
            continue
"""


class Contestant:
    """One way, with a repository and a cache of its own."""

    def __init__(self, lab: Lab, directory: Path, restic: str, empty: Path, conf: Path) -> None:
        """`empty` is a repository to begin with: only with one key are the same bytes the same chunks.

        `conf` is the configuration file by which the cluster is reached.
        """
        directory.mkdir(parents=True)
        self._empty = empty
        self.conf = conf
        self.node = Node(lab, directory)
        self.node.constants["CEPH_CONF"] = str(conf)
        self.restic = TimedRestic.made(restic, directory)
        self._plain_restic = restic

    def empty(self) -> None:
        """Begin again with an empty repository."""
        for path in (self.node.repository, self.node.directory / "cache"):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self._empty, self.node.repository)

    def remove(self) -> None:
        """Remove its repository and all else that it made."""
        shutil.rmtree(self.node.directory)

    def run(self, command: Sequence[str]) -> Cost:
        return measured(command, self.environment, self.restic)

    @property
    def environment(self) -> Mapping[str, str]:
        inherited = {n: value for n, value in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
        return {
            **inherited,  # an installed program has its bytecode
            "PYTHONPYCACHEPREFIX": str(self.node.directory / "bytecode"),
            "RESTIC_REPOSITORY": str(self.node.repository),
            "RESTIC_PASSWORD_FILE": str(self.node.password_file),
            "RESTIC_CACHE_DIR": str(self.node.directory / "cache"),
            "VIRT_RBD_BACKUP_CONFIG": str(self.node.directory / "settings.py"),
            "CEPH_CONF": str(self.conf),
            "LC_ALL": "C.UTF-8",
        }

    def saved(self) -> Sequence[str]:
        """Name the chunks of the image that was saved last: the same names mean the same bytes."""
        snapshots = json.loads(self._by_hand("snapshots", "--json"))
        images = [one for one in snapshots if "definition" not in (one.get("tags") or ())]
        tree = max(images, key=lambda one: str(one["time"]))["tree"]
        while True:
            (node,) = json.loads(self._by_hand("cat", "blob", tree))["nodes"]
            if node["type"] == "file":
                content: list[str] = node["content"]
                return content
            tree = node["subtree"]

    def _by_hand(self, *arguments: str) -> Any:
        command = [self._plain_restic, *arguments]
        return subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, check=True).stdout


Command = Callable[[Contestant, Subject], Sequence[str]]


def ours(contestant: Contestant, subject: Subject, read_rate: int = 0) -> Sequence[str]:
    constants = {"RESTIC_BINARY": str(contestant.restic.path), "MAX_READ_RATE": read_rate}
    return contestant.node.command("backup", subject.name, **constants)


def classic_loop(contestant: Contestant, subject: Subject) -> Sequence[str]:
    words = (str(contestant.conf), POOL, subject.name, SNAPSHOT, str(contestant.restic.path))
    return ["/usr/bin/python3", "-c", CLASSIC, *words]


def rbd_export(contestant: Contestant, subject: Subject) -> Sequence[str]:
    spec = f"{subject.spec}@{SNAPSHOT}"
    line = 'rbd export --no-progress "$1" - | "$2" backup --stdin --stdin-filename=vda.img --quiet'
    return ["bash", "-o", "pipefail", "-c", line, "bash", spec, str(contestant.restic.path)]


def local_file(contestant: Contestant, subject: Subject) -> Sequence[str]:
    """Save the same bytes out of a file, each time as a new one, or restic would not read it again."""
    return [str(contestant.restic.path), "backup", "--force", "--quiet", str(subject.file)]


def local_file_beside_a_reader(contestant: Contestant, subject: Subject) -> Sequence[str]:
    """As above, while the same bytes are read from the cluster, on the same processors."""
    line = '/usr/bin/python3 -c "$1" "${@:2:4}" & reader=$!; "${@:6}" && wait $reader'
    place = (str(contestant.conf), POOL, subject.name, SNAPSHOT)
    return ["bash", "-c", line, "bash", READING, *place, *local_file(contestant, subject)]


LIMIT = "restic on a local file"
EXPORT = "rbd export to restic"
OURS = "virt-rbd-backup"
LOOP = "sequential loop to restic"
SHARED_LIMIT = "the same, beside a reader of the image"
CONTESTANTS: Mapping[str, Command] = {
    LOOP: classic_loop,
    EXPORT: rbd_export,
    OURS: ours,
    LIMIT: local_file,
    SHARED_LIMIT: local_file_beside_a_reader,
}
