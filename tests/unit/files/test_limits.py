"""backup/files: what programs may take of this node's memory, and file systems that are odd but sound."""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.files import programs
from backup.model import Level

from ..recorder import Recorder
from ..samples import MIB
from .guest_images import change, ext4
from .test_ext import content, copied, opened

__all__ = ["content"]

pytestmark = pytest.mark.usefixtures("nothing_left")

SUPERBLOCK = 1024
BLOCKS, PER_GROUP, CLUSTERS, INODES = 4, 32, 36, 40  # offsets in it


def test_a_superblock_that_demands_gigabytes_is_an_error_in_one_line(content: Path, tmp_path: Path) -> None:
    image = ext4(tmp_path / "image", content, "-b", "1024", "-O", "^metadata_csum,^flex_bg")
    with image.open("r+b") as file:
        for offset, value in {BLOCKS: 320_000_000, PER_GROUP: 8, CLUSTERS: 8, INODES: 8}.items():
            file.seek(SUPERBLOCK + offset)
            file.write(struct.pack("<I", value))
        file.truncate(400 << 30)
    with (
        pytest.raises(BackupError, match=r"debugfs failed: .*Memory allocation failed") as caught,
        opened(image),
    ):
        pass
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["debugfs", "partx", "blkid"])
def test_what_reads_a_guest_s_disk_has_a_limit_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fake = tmp_path / name
    fake.write_text("#!/bin/sh\nulimit -v\n")
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert programs.output_of([name], lambda: None) == (0, f"{programs.MEMORY >> 10}\n")
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != programs.MEMORY


SIZES = (0, 1, 4, 59, 60, 61, 100, 150, 160, 161, 300, 5000)


@pytest.mark.parametrize("inode_size", [256, 1024])
def test_files_and_links_within_their_inodes_are_copied(
    content: Path, tmp_path: Path, inode_size: int
) -> None:
    for size in SIZES:
        (content / f"file{size}").write_bytes(b"x" * size)
        if 0 < size < 4000:
            (content / f"link{size}").symlink_to("y" * size)
    (content / "sub").mkdir()
    (content / "sub/file").write_text("in it")
    image = tmp_path / "image"
    ext4(image, content, "-O", "inline_data", "-I", str(inode_size))
    recorder = Recorder()
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.failed, recorder.told(Level.ERROR)) == (0, [])
    for size in SIZES:
        assert (tmp_path / f"to/file{size}").read_bytes() == b"x" * size
        assert not 0 < size < 4000 or os.readlink(tmp_path / f"to/link{size}") == "y" * size
    assert (tmp_path / "to/sub/file").read_text() == "in it"


def test_a_file_within_its_inode_that_is_too_short_is_a_failure(content: Path, tmp_path: Path) -> None:
    (content / "tiny").write_text("tiny")
    image = ext4(tmp_path / "image", content, "-O", "inline_data,^metadata_csum")
    change(image, f"set_inode_field /tiny size {MIB}")
    recorder = Recorder()
    assert copied(image, tmp_path / "to", recorder=recorder).failed == 1
    assert recorder.told(Level.ERROR)[0].startswith(f"tiny: it has {MIB} bytes, only ")


def test_a_part_that_cannot_be_removed_does_not_replace_the_error(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (content / "noise").write_bytes(os.urandom(MIB))
    image = ext4(tmp_path / "image", content)
    change(image, f"set_inode_field /noise size {MIB * 8}")

    def refused(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "unlink", refused)
    monkeypatch.setattr(os, "fchmod", refused)
    recorder = Recorder()
    assert copied(image, tmp_path / "to", b"/noise", recorder).failed == 1
    (error,) = recorder.told(Level.ERROR)
    assert error.startswith("noise: ")
    assert "only 1048576 can be read" in error or "cannot write: read-only file system" in error
