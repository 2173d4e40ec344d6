"""backup/files/ext.py: what inodes hold, healthy and hostile ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.files.entries import Unread
from backup.model import Level
from backup.terminal.files_text import _entries, _entry

from ..recorder import Recorder
from .guest_images import change, ext4, replace_bytes
from .test_ext import content, copied, opened

__all__ = ["content"]

pytestmark = pytest.mark.usefixtures("nothing_left")

TARGETS = (
    "dead/beef/0123456789abcdef/xyz",
    "feed-the-cat/in/the/house",
    "2024-11-29/daily/backup.tar",
    "cafebabe01234567",
    "a" * 59,
    "0000 1111 2222 3333 4444 5555 6666",
    "a",
)
TIMES = (0x63613030, 0x66656362, 0x62383861, 0x20202020, 0)


def test_targets_and_times_that_are_hex_digits_as_text_are_copied_as_they_are(
    content: Path, tmp_path: Path
) -> None:
    for number, target in enumerate(TARGETS):
        (content / f"link{number}").symlink_to(target)
    for number, time in enumerate(TIMES):
        (content / f"file{number}").write_text("hello")
        os.utime(content / f"file{number}", (time, time))
    result = copied(ext4(tmp_path / "image", content), tmp_path / "to")
    assert (result.files, result.links, result.failed) == (len(TIMES), len(TARGETS), 0)
    copies = tmp_path / "to"
    assert [os.readlink(copies / f"link{number}") for number in range(len(TARGETS))] == [*TARGETS]
    assert [int((copies / f"file{number}").stat().st_mtime) for number in range(len(TIMES))] == [*TIMES]


def test_an_inode_of_ext3_has_no_more_bits_of_its_time(content: Path, tmp_path: Path) -> None:
    (content / "file").write_text("old")
    os.utime(content / "file", (1_600_000_000, 1_600_000_000))
    image = ext4(tmp_path / "image", content, "-O", "^metadata_csum")
    change(image, "set_inode_field /file mtime_extra 3", "set_inode_field /file extra_isize 0")
    with opened(image) as files:
        assert files.changed(files.find(b"/file")) == 1_600_000_000


@pytest.mark.parametrize("target", [b"abc\0efg", b"\0bcdefg"])
def test_a_target_with_a_null_byte_is_a_failure_and_others_are_copied(
    content: Path, tmp_path: Path, target: bytes
) -> None:
    (content / "a").symlink_to("abcdefg")
    (content / "long").symlink_to("x" * 80 + "abcdefg")
    (content / "z").write_text("z")
    image = ext4(tmp_path / "image", content, "-O", "^metadata_csum")
    replace_bytes(image, b"abcdefg", target)
    recorder = Recorder()
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.files, result.links, result.failed) == (1, 0, 2)
    assert recorder.told(Level.ERROR)[0].startswith("a: a link with a target that no link can have (hint: ")


def test_what_the_guest_has_encrypted_is_named_so(content: Path, tmp_path: Path) -> None:
    (content / "secret").mkdir()
    (content / "secret/file").write_text("in it")
    (content / "file").write_text("of its own")
    (content / "link").symlink_to("file")
    (content / "plain").write_text("plain")
    image = ext4(tmp_path / "image", content, "-O", "^metadata_csum")
    change(image, *(f"set_inode_field /{name} flags 0x800" for name in ("secret", "file", "link")))
    recorder = Recorder()
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.files, result.links, result.failed) == (1, 0, 3)
    reasons = [text.split(" (hint: ")[0] for text in recorder.told(Level.ERROR)]
    assert reasons == [f"{name}: the guest has encrypted it" for name in ("file", "link", "secret")]


def test_a_bad_inode_is_an_error_and_the_rest_of_its_directory_is_copied(
    content: Path, tmp_path: Path
) -> None:
    for directory in (content, content / "etc"):
        directory.mkdir(exist_ok=True)
        (directory / "bad").symlink_to("target_to_spoil")
        (directory / "passwd").write_text("root")
    image = ext4(tmp_path / "image", content)
    replace_bytes(image, b"target_to_spoil", b"target_that_was")
    recorder = Recorder()
    with opened(image) as files:
        for path in (b"/passwd", b"/etc/passwd"):
            assert b"".join(files.content(files.find(path))) == b"root"
        with pytest.raises(BackupError, match=r"debugfs failed: ls: .* while reading inode"):
            files.find(b"/etc/bad")
        *names, unread = files.entries(files.find(b"/etc"))
        assert [entry.name for entry in names] == [b"passwd"]
        assert isinstance(unread, Unread)
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.files, result.failed) == (2, 2)
    texts = recorder.told(Level.ERROR)
    assert [text.split(": debugfs failed: ls: ")[0] for text in texts] == ["etc/", "/"]
    with opened(image) as files:
        (*_, row) = _entries(files.entries(files.find(b"/")))
        assert "while reading inode" in row
        assert "while reading inode" in str(_entry(files.entries(files.find(b"/"))[-1])["error"])
