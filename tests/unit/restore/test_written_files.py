"""backup/restore/written_files.py: what killed restores and drills left is removed, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from backup.errors import BackupError
from backup.hypervisor.connection import Hypervisor
from backup.model import Level
from backup.restore.written_files import remove_left

from ..recorder import Recorder
from ..samples import URI, UUID

# A drill that is killed while its domain runs, or before its files are written (a pause in open).
DRILL = """
import os, signal, sys
from pathlib import Path
from backup.model import TPM_STATE, NodeFile
from backup.restore import node_files
from tests.unit.recorder import Recorder

root = Path(sys.argv[1])
own = [
    NodeFile("NVRAM", str(root / "nvram/web-drill_VARS.fd"), b"nvram"),
    NodeFile(TPM_STATE, str(root / "swtpm/uuid/tpm2/tpm2-00.permall"), b"state"),
]
shared = [NodeFile("kernel", str(root / "boot/new/vmlinuz"), b"kernel")]
at = sys.argv[2]
steps = []

def killed(name):
    real = getattr(node_files, name)
    def call(*arguments):
        real(*arguments)
        steps.append(name)
        if f"{name}{steps.count(name)}" == at:
            os.kill(os.getpid(), signal.SIGKILL)
    return call

for name in ("_create", "_name"):
    setattr(node_files, name, killed(name))
files = node_files.NodeFiles(own, shared, Recorder(), "web-drill", "%s", str(root / "state"), set)
with files.written("%s"):
    (root / "swtpm/uuid/tpm2/.lock").touch()
    (root / "swtpm/uuid/tpm2/TMP2-00.permall").touch()
    if at == "running":
        os.kill(os.getpid(), signal.SIGKILL)
    print("ready", flush=True)
    sys.stdin.read()
print(files.reporter.messages, flush=True)
"""


class PaperLibvirt:
    """Knows which files its domains need, and which domains were destroyed."""

    def __init__(self) -> None:
        self.needed: set[str] = set()
        self.destroyed: list[str] = []
        self.error: BackupError | None = None

    def destroy(self, uuid: str) -> None:
        self.destroyed.append(uuid)

    def needed_paths(self) -> set[str]:
        if self.error:
            raise self.error
        return self.needed

    def at(self, uri: str) -> Hypervisor | None:
        return cast(Hypervisor, self) if uri == URI else None


class Node:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.libvirt, self.recorder = PaperLibvirt(), Recorder()
        for name in ("nvram", "swtpm", "boot"):
            (root / name).mkdir()
        self.kernel = root / "boot/new/vmlinuz"

    def drill(self, at: str) -> subprocess.Popen[bytes]:
        words = (sys.executable, "-c", DRILL % (URI, UUID), str(self.root), at)
        pipe = subprocess.PIPE
        return subprocess.Popen(words, stdin=pipe, stdout=pipe, cwd=Path(__file__).parents[3])

    def killed_drill(self, at: str) -> None:
        with self.drill(at) as process:
            assert process.wait(60) == -signal.SIGKILL

    def remove_left(self) -> None:
        remove_left(str(self.root / "state"), self.libvirt.at, self.recorder)

    def left(self) -> list[str]:
        """Return all files and directories but the four that stay."""
        paths = (path.relative_to(self.root) for path in self.root.rglob("*"))
        stay = ("nvram", "swtpm", "boot", "state", "state/written")
        return sorted(str(path) for path in paths if str(path) not in stay)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("at", ["_create1", "_create2", "_create3", "_name1", "running"])
def test_nothing_of_a_killed_drill_is_left(node: Node, at: str) -> None:
    node.killed_drill(at)
    assert len(node.left()) > 1
    node.remove_left()
    assert (node.left(), node.libvirt.destroyed) == ([], [UUID])
    (text,) = node.recorder.told(Level.WARNING)
    assert text.startswith("removed what an interrupted restore or drill left: ")
    node.remove_left()
    assert node.libvirt.destroyed == [UUID]


def test_a_drill_that_runs_keeps_its_files(node: Node) -> None:
    with node.drill("never") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        before = node.left()
        node.remove_left()
        assert (node.left(), node.libvirt.destroyed) == (before, [])
        process.communicate(timeout=60)
    assert node.left() == []


def test_a_file_that_a_domain_needs_by_now_stays(node: Node) -> None:
    node.killed_drill("running")
    node.libvirt.needed.add(str(node.kernel))
    node.remove_left()
    assert node.left() == ["boot/new", "boot/new/vmlinuz"]


def test_a_file_that_somebody_else_wrote_there_stays(node: Node) -> None:
    node.killed_drill("running")
    node.kernel.unlink()
    node.kernel.write_bytes(b"kernel")
    node.remove_left()
    assert node.kernel.exists()


def test_what_cannot_be_removed_stays_recorded_and_is_a_warning(node: Node) -> None:
    node.killed_drill("running")
    node.libvirt.error = BackupError("libvirt hangs")
    node.remove_left()
    (text,) = node.recorder.told(Level.WARNING)
    assert f"cannot know whether {node.kernel} is in use: libvirt hangs" in text
    assert not (node.root / "swtpm/uuid").exists(), "of the drill alone"
    node.libvirt.error = None
    node.remove_left()
    assert node.left() == []


def test_what_belongs_to_a_libvirt_that_is_not_connected_waits(node: Node) -> None:
    node.killed_drill("running")
    before = node.left()
    remove_left(str(node.root / "state"), lambda _: None, node.recorder)
    assert node.left() == before


def test_a_record_that_was_cut_off_proves_what_was_complete(node: Node) -> None:
    node.killed_drill("running")
    (record,) = (node.root / "state/written").iterdir()
    record.write_bytes(record.read_bytes() + b'{"name": "web')
    node.remove_left()
    assert node.left() == []
    (record.parent / "empty.json").touch()
    node.remove_left()
    assert node.left() == []


def test_a_record_that_cannot_be_written_is_a_warning(node: Node) -> None:
    (node.root / "state").touch()
    with node.drill("never") as process:
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, output.count(b"cannot record in STATE_DIR")) == (0, 1), output
    assert node.left() == []
