"""backup/files: inodes and directories that were zeroed or overwritten are failures, not nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.model import Level

from ..mount.mounted_node import save
from ..program_node import Node
from ..recorder import Recorder
from .guest_images import change, ext4, snapshot
from .test_ext import content, copied, opened

__all__ = ["content"]

pytestmark = pytest.mark.usefixtures("nothing_left")

LOST = ("clri /etc", "set_inode_field /etc mode 0177777", "set_inode_field /etc mode 0")
NO_BLOCKS = ("set_inode_field /etc size 0", "set_inode_field /etc block[0] 0xf30a")  # no extents


def damaged(content: Path, tmp_path: Path, *commands: str) -> Path:
    (content / "etc").mkdir()
    (content / "etc/hosts").write_text("127.0.0.1")
    (content / "kept").write_text("kept")
    image = ext4(tmp_path / "image", content, "-O", "^metadata_csum")
    change(image, *commands)
    return image


@pytest.mark.parametrize("command", LOST)
def test_a_zeroed_or_overwritten_inode_is_a_failure_and_the_rest_is_copied(
    content: Path, tmp_path: Path, command: str
) -> None:
    recorder = Recorder()
    image = damaged(content, tmp_path, command)
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.files, result.failed, dict(result.left_out)) == (1, 1, {})
    assert recorder.told(Level.ERROR)[0].startswith("etc: its inode is damaged: it has the unknown mode ")
    with opened(image) as files, pytest.raises(BackupError, match="its inode is damaged"):
        files.find(b"/etc/hosts")


def test_a_directory_without_its_blocks_is_a_failure(content: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    image = damaged(content, tmp_path, *NO_BLOCKS)
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.files, result.failed) == (1, 1)
    with opened(image) as files, pytest.raises(BackupError):
        files.find(b"/etc/hosts")


def test_what_was_named_and_is_not_copied_is_a_failure(content: Path, tmp_path: Path) -> None:
    image = damaged(content, tmp_path, "clri /kept", "cd /", "mknod null c 1 3", "mknod pipe p")
    for path in (b"/kept", b"/null", b"/pipe"):
        recorder = Recorder()
        result = copied(image, tmp_path / "to", path, recorder)
        assert (result.files, result.failed, dict(result.left_out)) == (0, 1, {})
        assert recorder.told(Level.ERROR)[0].startswith(f"{path[1:].decode()}: it")
    assert copied(image, tmp_path / "all").left_out == {"a device, pipe or socket": 2}


def test_a_lost_inode_is_exit_code_3_in_a_list_too(content: Path, tmp_path: Path) -> None:
    image = damaged(content, tmp_path, "clri /etc", "cd /", "mknod null c 1 3")
    node = Node(tmp_path)
    save(node, "restic", {"vda": snapshot(image)})
    (tmp_path / "to").mkdir()
    lines = ("files web /etc", "files web /", "files web / --json", "files web /null --to to")
    for line, done in node.run_each(*(one.replace(" to", f" {tmp_path}/to") for one in lines)).items():
        assert (line, done.returncode) == (line, 3)
        assert "--to" in line or "its inode is damaged" in done.stdout
    done = node.start(["files", "web", "/etc/hosts"])
    assert done.returncode == 1
    assert done.stderr.startswith("error: its inode is damaged")
