"""A restore point's disks as files, and every way in which that ends."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.node import Node, snapshot_names, wait_until
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, WEB

READY = 180  # seconds under load
DISKS = {"vda": f"vms/{WEB}-root", "vdb": f"ssd/{WEB}-data"}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """An empty directory to mount on; after the test nothing is mounted there."""
    directory = tmp_path / "shown"
    directory.mkdir()
    yield directory
    assert f" {directory} " not in Path("/proc/self/mountinfo").read_text()
    assert os.listdir(directory) == []


@pytest.fixture(params=["restic", "restic_incremental"])
def saved(request: pytest.FixtureRequest, node: Node) -> Iterator[Node]:
    """A node whose output has saved a running domain and one that is shut off."""
    node.constants["OUTPUT"] = request.param
    done = node.run("backup", WEB, ARCHIVE)
    assert done.returncode == 0, done.stderr
    yield node
    assert node.run("cleanup", "--all").returncode == 0


@contextmanager
def mounted(node: Node, domain: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Have a restore point mounted during the block."""
    with node.started("mount", domain, str(directory)) as running:
        try:
            assert running.stdout
            assert "until Ctrl-C" in running.stdout.readline()
            yield running
        finally:
            running.terminate()
            with suppress(subprocess.TimeoutExpired):
                running.wait(READY)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        found = hashlib.sha256()
        while data := file.read(1 << 20):
            found.update(data)
    return found.hexdigest()


def exported(lab: Lab, spec: str) -> str:
    return hashlib.sha256(lab.rbd("export", "--no-progress", spec, "-")).hexdigest()


def test_the_disks_are_those_of_the_snapshots_bit_for_bit_and_can_only_be_read(
    saved: Node, lab: Lab, directory: Path
) -> None:
    with mounted(saved, ARCHIVE, directory) as running:
        assert set(os.listdir(directory)) == {"vda.raw", "domain.xml", "manifest.json"}
        assert json.loads((directory / "manifest.json").read_bytes())["domain"]["name"] == ARCHIVE
        disk = directory / "vda.raw"
        assert digest(disk) == exported(lab, f"vms/{ARCHIVE}")
        status = disk.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o400, 0)
        assert status.st_blocks * 512 < status.st_size / 2, "it is sparse"
        for change in (disk.unlink, disk.touch, (directory / "new").touch, lambda: disk.open("r+b")):
            with pytest.raises(OSError, match="Read-only file system"):
                change()
        running.send_signal(signal.SIGTERM)
        assert running.wait(READY) == 143
    with mounted(saved, WEB, directory) as running:
        for target, spec in DISKS.items():
            assert digest(directory / f"{target}.raw") == of_snapshot(saved, lab, target, spec)
        subprocess.run(["fusermount3", "-u", directory], check=True)
        assert running.wait(READY) == 0


def of_snapshot(saved: Node, lab: Lab, target: str, spec: str) -> str:
    """Give the checksum of a running domain's snapshot, or what restic has of it if that is gone."""
    if saved.constants["OUTPUT"] == "restic_incremental":
        (snapshot,) = snapshot_names(lab, spec)
        return exported(lab, f"{spec}@{snapshot}")
    (found,) = saved.snapshots(f"image={spec}")
    return hashlib.sha256(saved.dump(found["id"], f"{target}.img")).hexdigest()


def test_prune_has_to_wait_backups_do_not_and_what_a_kill_leaves_the_next_mount_removes(
    node: Node, directory: Path, tmp_path: Path
) -> None:
    assert node.run("backup", ARCHIVE).returncode == 0
    with mounted(node, ARCHIVE, directory) as running:
        node.shell("{ restic prune 2>&1 || true; } | grep --quiet 'already locked'", tmp_path)
        assert node.run("backup", ARCHIVE).returncode == 0
        assert (directory / "vda.raw").stat().st_size
        running.kill()
        running.wait()
        wait_until(lambda: not node.processes(""), READY, "restic ends with it")
        with pytest.raises(OSError, match="Transport endpoint is not connected"):
            os.listdir(directory)
        with mounted(node, ARCHIVE, directory):
            assert (directory / "vda.raw").stat().st_size
    node.shell("restic prune", tmp_path)


def test_ctrl_c_at_any_moment_leaves_nothing(node: Node, directory: Path) -> None:
    assert node.run("backup", ARCHIVE).returncode == 0
    for words in (("mount", ARCHIVE, str(directory)), ("files", ARCHIVE)):
        for tenths in range(2, 22, 2):
            with node.started(*words) as running:
                time.sleep(tenths / 10)
                running.send_signal(signal.SIGINT)
                code = running.wait(READY)
            # before it has begun and after it has done all, the interpreter ends by the signal itself
            assert code in {130, -signal.SIGINT} or (code == 0 and words[0] == "files")
            assert not node.processes("")
            assert os.listdir(directory) == []
            assert not list((node.repository / "locks").iterdir())
