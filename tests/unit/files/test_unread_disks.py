"""main.py files where a disk cannot be read: a repository that lost data, a stop, programs that fail."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from backup.errors import Interrupted
from backup.files import programs
from backup.files.volumes import volumes
from backup.system.stop_request import StopRequest

from ..mount.mounted_node import save
from ..program_node import MAIN, PYTHON, Node
from ..samples import MIB
from ..waiting import wait_until
from .guest_images import ext4, snapshot

SMALL = 1 << 16  # bytes; packs of what is no image


def damage_images(node: Node) -> None:
    """Change what the repository has of images, but not of manifests."""
    for pack in (node.repository.path / "data").glob("*/*"):
        content = bytearray(pack.read_bytes())
        if len(content) > SMALL:
            for at in range(0, len(content), 16):
                content[at] ^= 1
            pack.chmod(0o600)
            pack.write_bytes(content)


@pytest.fixture
def damaged(tmp_path: Path) -> Node:
    (tmp_path / "content").mkdir()
    (tmp_path / "content/noise").write_bytes(random.Random(3).randbytes(2 * MIB))
    node = Node(tmp_path)
    save(node, "restic", {"vda": snapshot(ext4(tmp_path / "image", tmp_path / "content"))})
    damage_images(node)
    node.configure()
    return node


def test_a_repository_that_cannot_be_read_is_no_empty_disk(damaged: Node) -> None:
    done = damaged.start(["files", "web"])
    assert done.returncode == 3
    assert done.stdout.splitlines()[1].split("  ")[-1].strip() == "cannot be read"
    lines = done.stderr.splitlines()
    assert lines
    assert len(lines) == len(set(lines))
    assert all("cannot read at offset" in line for line in lines)
    done = damaged.start(["files", "web", "--json"])
    assert (done.returncode, json.loads(done.stdout)[0]["error"]) == (3, "cannot be read")
    for disk in ("vda", "vda1", "vg/root"):
        done = damaged.start(["files", "web", "/noise", "--disk", disk])
        assert done.returncode == 1
        assert "error: vda cannot be read\nhint: " in done.stderr
        assert "does not exist" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_disks_are_probed_is_no_list(damaged: Node, tmp_path: Path, number: int) -> None:
    for name in ("partx", "blkid"):  # what ends by itself, as its disk cannot be read any more
        (tmp_path / "bin").mkdir(exist_ok=True)
        fake = tmp_path / "bin" / name
        fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nsleep 0.05\nkill -{number} $PPID\n")
        fake.chmod(0o700)
    environment = {
        **os.environ,
        "VIRT_RBD_BACKUP_CONFIG": str(damaged.settings),
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
    }
    command = [PYTHON, str(MAIN), "files", "web"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_until((tmp_path / "begun").exists, 60, "it probes")
        printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed) == (128 + number, b"")


def test_a_stop_is_noticed_after_a_program_has_ended_by_itself() -> None:
    stop = StopRequest()
    stop.request(Interrupted("interrupted", signal.SIGINT))
    with pytest.raises(Interrupted):
        programs.output_of(["true"], stop.check)


def test_a_disk_that_cannot_be_probed_is_unread_and_one_with_nothing_is_not(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    counts = iter(range(100))
    assert [one.unread for one in volumes("vda", tmp_path / "disk", lambda: None)] == [False]
    failing = volumes("vda", tmp_path / "disk", lambda: None, lambda: next(counts))
    assert [(one.name, one.unread) for one in failing] == [("vda", True)]


def test_a_blkid_that_fails_is_no_disk_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    (tmp_path / "blkid").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "blkid").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (one,) = volumes("vda", tmp_path / "disk", lambda: None)
    assert one.unread
