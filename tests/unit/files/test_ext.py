"""backup/files: what debugfs reads of a guest's ext4, and what is copied of it, however hostile it is."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backup.errors import BackupError, Interrupted
from backup.files import ext, session
from backup.files.copy_out import LEADS_OUT, SPECIAL, Copied, CopyOut, _stays_inside
from backup.files.debugfs import debugfs
from backup.files.entries import Entry, NotFound
from backup.files.ext import ExtFiles
from backup.files.session import SessionEnded
from backup.model import Level
from backup.system.stop_request import StopRequest

from ..raising import raises
from ..recorder import Recorder
from ..samples import MIB
from ..waiting import children
from .guest_images import change, ext4, replace_bytes, run

pytestmark = pytest.mark.usefixtures("nothing_left")

NAMES = (
    "größe",
    "名前",
    "имя",
    "a b",
    'quo"te',
    "back\\slash",
    "new\nline",
    "<7>",
    "-x",
    "#x",
    "x" * 255,
    "\u202e",
    os.fsdecode(b"\xff\xfe"),
)
NOISE = random.Random(1).randbytes(3 * MIB + 17)


@pytest.fixture
def content(tmp_path: Path) -> Path:
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


@contextmanager
def opened(image: Path, offset: int = 0) -> Iterator[ExtFiles]:
    with debugfs(str(image), offset, lambda: None) as program:
        yield ExtFiles(program)


def copied(
    image: Path,
    to: Path,
    path: bytes = b"/",
    recorder: Recorder | None = None,
    stop: StopRequest | None = None,
) -> Copied:
    to.mkdir(exist_ok=True)
    with opened(image) as files:
        check_stop = (stop or StopRequest()).check
        return CopyOut(files, "web", recorder or Recorder(), check_stop).copy(files.find(path), str(to))


def test_names_of_all_kinds_are_listed_and_copied(content: Path, tmp_path: Path) -> None:
    (content / "sub").mkdir()
    for name in NAMES:
        (content / "sub" / name).write_bytes(os.fsencode(name))
    image = ext4(tmp_path / "image", content)
    with opened(image) as files:
        listed = files.entries(files.find(b"/sub"))
        assert [entry.name for entry in listed] == sorted(map(os.fsencode, NAMES))
        for name in NAMES:
            found = files.find(b"sub/" + os.fsencode(name))
            assert b"".join(files.content(found)) == os.fsencode(name)
    copied(image, tmp_path / "to", b"/sub")
    read_back = {one.name: os.fsdecode(one.read_bytes()) for one in (tmp_path / "to/sub").iterdir()}
    assert read_back == dict(zip(NAMES, NAMES))


def test_files_have_their_bytes_times_and_permissions_but_neither_owner_nor_set_id_bits(
    content: Path, tmp_path: Path
) -> None:
    (content / "noise").write_bytes(NOISE)
    (content / "noise").chmod(0o6751)
    os.chown(content / "noise", 1234, 5678)
    (content / "noise").chmod(0o6751)
    os.utime(content / "noise", (0, 1_600_000_000))
    (content / "sticky").mkdir(mode=0o700)
    (content / "sticky").chmod(0o1777)
    (content / "empty").touch()
    result = copied(ext4(tmp_path / "image", content), tmp_path / "to")
    assert (result.files, result.directories, result.bytes) == (2, 2, len(NOISE)), "and lost+found"
    found = (tmp_path / "to/noise").stat()
    assert (tmp_path / "to/noise").read_bytes() == NOISE
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o751, 0, 0)
    assert found.st_mtime == 1_600_000_000
    assert stat.S_IMODE((tmp_path / "to/sticky").stat().st_mode) == 0o777
    assert (tmp_path / "to/empty").read_bytes() == b""


def test_sparse_files_stay_sparse(content: Path, tmp_path: Path) -> None:
    with (content / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(20 * MIB)
        file.write(b"end")
    copied(ext4(tmp_path / "image", content), tmp_path / "to")
    assert (tmp_path / "to/sparse").read_bytes() == (content / "sparse").read_bytes()
    assert (tmp_path / "to/sparse").stat().st_blocks * 512 < MIB


def test_links_are_followed_to_find_a_path_as_the_guest_would(content: Path, tmp_path: Path) -> None:
    (content / "usr/bin").mkdir(parents=True)
    (content / "usr/bin/tool").write_text("tool")
    (content / "bin").symlink_to("usr/bin")
    (content / "usr/absolute").symlink_to("/bin/../bin/tool")
    (content / "long").symlink_to("./" * 60 + "usr")
    (content / "loop").symlink_to("loop")
    with opened(ext4(tmp_path / "image", content)) as files:
        tool = files.find(b"/usr/bin/tool")
        for path in (b"bin/tool", b"/usr/absolute", b"/long/bin/tool", b"/../usr/./bin//tool"):
            assert files.find(path) == tool
        with raises("/loop leads over too many links", NotFound):
            files.find(b"/loop")
        for missing in ("/no", "/usr/bin/tool/no"):
            with raises(f"{missing} does not exist", NotFound):
                files.find(missing.encode())


@pytest.mark.parametrize(
    ("target", "depth", "inside"),
    [
        (b"name", 0, True),
        (b"a/b/c", 0, True),
        (b"../a", 1, True),
        (b"../../a", 1, False),
        (b"..", 0, False),
        (b"..", 1, True),
        (b"a/../../b", 5, False),
        (b"./../a", 5, False),
        (b"/etc/passwd", 5, False),
        (b"", 5, False),
    ],
)
def test_a_link_must_not_lead_out(target: bytes, depth: int, inside: bool) -> None:
    assert _stays_inside(target, depth) is inside


def test_links_that_lead_out_and_special_files_are_left_out_with_a_warning(
    content: Path, tmp_path: Path
) -> None:
    (content / "top/sub").mkdir(parents=True)
    (content / "top/sub/inside").symlink_to("../file")
    (content / "top/sub/outside").symlink_to("../../file")
    (content / "top/absolute").symlink_to("/etc/shadow")
    (content / "top/up").symlink_to("sub/../../..")
    os.mkfifo(content / "top/pipe")
    os.mknod(content / "top/device", 0o600 | stat.S_IFBLK, os.makedev(8, 0))
    recorder = Recorder()
    result = copied(ext4(tmp_path / "image", content), tmp_path / "to", b"/top", recorder)
    assert (result.links, result.failed, dict(result.left_out)) == (1, 0, {LEADS_OUT: 3, SPECIAL: 2})
    assert os.readlink(tmp_path / "to/top/sub/inside") == "../file"
    assert sorted(os.listdir(tmp_path / "to/top")) == ["sub"]
    assert recorder.told(Level.WARNING) == [f"left out {LEADS_OUT}, 3 times", f"left out {SPECIAL}, 2 times"]


@pytest.mark.parametrize("name", [b"../../../evil", b"/etc/evil.sh.", b"a/b/c/d/e/f/g"])
def test_a_name_with_a_slash_spoils_its_directory_and_nothing_else(
    content: Path, tmp_path: Path, name: bytes
) -> None:
    (content / "bad").mkdir()
    (content / "bad/hostile_name_").write_text("evil")
    (content / "good").write_text("good")
    image = ext4(tmp_path / "image", content, "-O", "^metadata_csum")
    replace_bytes(image, b"hostile_name_", name)
    recorder = Recorder()
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.failed, result.files) == (1, 1)
    assert "has a name with a slash in it" in recorder.told(Level.ERROR)[0]
    assert sorted(os.listdir(tmp_path / "to")) == ["bad", "good", "lost+found"]
    assert os.listdir(tmp_path / "to/bad") == []


def test_hostile_names_dot_and_dot_dot_are_ignored(content: Path, tmp_path: Path) -> None:
    (content / "ab").write_text("evil")
    image = ext4(tmp_path / "image", content, "-O", "^metadata_csum")
    replace_bytes(image, b"\x02\x01ab", b"\x02\x01..")
    assert copied(image, tmp_path / "to").files == 0


def test_a_directory_in_itself_or_in_several_is_copied_once(content: Path, tmp_path: Path) -> None:
    (content / "a/b").mkdir(parents=True)
    (content / "a/b/file").write_text("once")
    image = ext4(tmp_path / "image", content)
    change(image, "ln /a /a/b/loop", "ln /a/b /again")
    recorder = Recorder()
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.files, result.failed) == (1, 2)
    assert all("in several others, or in itself" in text for text in recorder.told(Level.ERROR))


def test_two_entries_of_one_name_are_one_file_and_a_failure(content: Path, tmp_path: Path) -> None:
    (content / "name_1").write_text("1")
    (content / "name_2").write_text("2")
    image = ext4(tmp_path / "image", content, "-O", "^metadata_csum")
    replace_bytes(image, b"name_2", b"name_1")
    result = copied(image, tmp_path / "to")
    assert (result.files, result.failed) == (1, 1)


def test_a_file_that_has_no_room_fails_and_others_are_copied(content: Path, tmp_path: Path) -> None:
    (content / "a").write_text("a")
    (content / "huge").write_text("small")
    (content / "z").write_text("z")
    image = ext4(tmp_path / "image", content)
    change(image, f"set_inode_field /huge size {1 << 42}")
    recorder = Recorder()
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.files, result.failed) == (2, 1)
    assert recorder.told(Level.ERROR)[0].startswith("huge: it has 4.0 TiB, there is room for ")


def test_a_full_file_system_ends_it(content: Path, tmp_path: Path) -> None:
    for name in range(20):
        (content / f"{name:02}").write_bytes(NOISE[: MIB // 2])
    image = ext4(tmp_path / "image", content)
    (tmp_path / "to").mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=30M,nr_inodes=8", "none", tmp_path / "to")
    try:
        recorder = Recorder()
        result = copied(image, tmp_path / "to", recorder=recorder)
        assert (result.failed, result.ended) == (1, True)
        (error,) = recorder.told(Level.ERROR)
        assert "nothing more can be copied: cannot write: no space left on device" in error
        complete = [one for one in (tmp_path / "to").iterdir() if one.is_file()]
        assert all(one.read_bytes() == NOISE[: MIB // 2] for one in complete)
        assert result.files == len(complete) > 0
    finally:
        run("umount", tmp_path / "to")


def test_a_damaged_file_fails_and_others_are_copied(content: Path, tmp_path: Path) -> None:
    (content / "bad").write_bytes(NOISE)
    (content / "good").write_bytes(NOISE)
    image = ext4(tmp_path / "image", content, "-O", "^extents,^64bit")
    change(image, "set_inode_field /bad block[0] 4000000000")
    recorder = Recorder()
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.files, result.failed) == (1, 1)
    assert not (tmp_path / "to/bad").exists()
    assert recorder.told(Level.ERROR)[0].startswith("bad: debugfs failed: ")


def test_what_is_no_file_system_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(5 * MIB))
    with (
        pytest.raises(BackupError, match=r"debugfs has ended: .*Bad magic number"),
        opened(tmp_path / "image"),
    ):
        pass


def test_a_debugfs_that_crashes_ends_it_with_one_error(content: Path, tmp_path: Path) -> None:
    for name in range(20):
        (content / f"{name:02}").write_bytes(NOISE[:1000])
    image = ext4(tmp_path / "image", content)
    (tmp_path / "to").mkdir()
    recorder, before = Recorder(), set(children())
    with debugfs(str(image), 0, lambda: None) as program:
        files = ExtFiles(program)
        root = files.find(b"/")
        (pid,) = set(children()) - before
        os.kill(pid, signal.SIGKILL)
        with raises("debugfs has ended", SessionEnded):
            CopyOut(files, "web", recorder, lambda: None).copy(root, str(tmp_path / "to"))
    assert recorder.messages == [], "nothing was copied"


def test_a_debugfs_that_crashes_meanwhile_leaves_the_numbers_of_what_was_copied(
    content: Path, tmp_path: Path
) -> None:
    for name in range(20):
        (content / "sub" / f"{name:02}").parent.mkdir(exist_ok=True)
        (content / "sub" / f"{name:02}").write_bytes(NOISE[:1000])
    (content / "device").symlink_to("/etc/passwd")
    image = ext4(tmp_path / "image", content)
    (tmp_path / "to").mkdir()
    recorder, before = Recorder(), set(children())
    with debugfs(str(image), 0, lambda: None) as program:
        files = ExtFiles(program)
        (pid,) = set(children()) - before
        read = files.content

        def crashing(file: Entry) -> Iterator[bytes]:
            if file.name == b"05":
                os.kill(pid, signal.SIGKILL)
            return read(file)

        files.content = crashing  # type: ignore[method-assign]
        root = files.find(b"/")
        result = CopyOut(files, "web", recorder, lambda: None).copy(root, str(tmp_path / "to"))
    assert (result.files, result.failed, result.ended) == (5, 1, True)
    (error,) = recorder.told(Level.ERROR)
    assert error.startswith("sub/05: nothing more can be copied: debugfs has ended")
    assert recorder.told(Level.WARNING) == ["left out a link that leads out of what is copied, 1 time"]
    assert len(os.listdir(tmp_path / "to/sub")) == 5


def test_a_stop_ends_it_and_leaves_no_part_of_a_file(content: Path, tmp_path: Path) -> None:
    (content / "noise").write_bytes(NOISE)
    stop, recorder = StopRequest(), Recorder()
    image = ext4(tmp_path / "image", content)
    (tmp_path / "to").mkdir()
    with opened(image) as files, raises("interrupted", Interrupted):
        entry = files.find(b"/noise")
        pieces = files.content

        def stopped_within(file: Entry) -> Iterator[bytes]:
            for number, data in enumerate(pieces(file)):
                if number == 3:
                    stop.request(Interrupted("interrupted", 15))
                    stop.check()
                yield data

        files.content = stopped_within  # type: ignore[method-assign]
        CopyOut(files, "web", recorder, stop.check).copy(entry, str(tmp_path / "to"))
    assert os.listdir(tmp_path / "to") == []


def test_a_directory_with_many_files_is_copied_in_seconds(content: Path, tmp_path: Path) -> None:
    for number in range(3000):
        (content / f"{number}").write_text(f"{number}")
    result = copied(ext4(tmp_path / "image", content, "-N", "5000"), tmp_path / "to")
    assert (result.files, result.failed) == (3000, 0)
    assert (tmp_path / "to/2999").read_text() == "2999"


def test_many_levels_of_directories_end_somewhere(content: Path, tmp_path: Path) -> None:
    deep = content
    for _ in range(230):
        deep /= "d"
    deep.mkdir(parents=True)
    recorder = Recorder()
    result = copied(ext4(tmp_path / "image", content), tmp_path / "to", recorder=recorder)
    assert (result.directories, result.failed) == (201, 1)
    assert "more than 200 directories within each other" in recorder.told(Level.ERROR)[0]


def test_owners_of_all_numbers_are_listed(content: Path, tmp_path: Path) -> None:
    (content / "file").write_text("of nobody")
    image = ext4(tmp_path / "image", content)
    change(image, "set_inode_field /file uid 4294967294", "set_inode_field /file gid 2147483648")
    with opened(image) as files:
        (found,) = [entry for entry in files.entries(files.find(b"/")) if entry.name == b"file"]
    assert (found.owner, found.group) == (4294967294, 2147483648)


def test_a_link_whose_target_is_endless_fails_and_others_are_copied(content: Path, tmp_path: Path) -> None:
    (content / "link").symlink_to("x" * 100)
    (content / "other").symlink_to("y" * 100)
    image = ext4(tmp_path / "image", content)
    change(image, f"set_inode_field /link size {1 << 40}")
    recorder = Recorder()
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.links, result.failed) == (1, 1)
    assert recorder.told(Level.ERROR)[0].startswith("link: a link with a target of 1.0 TiB")
    with opened(image) as files, raises("a link with a target of 1.0 TiB"):
        files.find(b"/link/x")


def test_a_directory_with_a_list_of_any_length_is_copied(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1000):
        (content / f"{number:0200}").touch()
    image = ext4(tmp_path / "image", content)
    monkeypatch.setattr(session, "ANSWER_LIMIT", 20_000)
    assert copied(image, tmp_path / "to").files == 1000


def test_a_directory_of_too_many_entries_fails_and_others_are_copied(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (content / "large").mkdir()
    for number in range(1000):
        (content / "large" / f"{number:0200}").touch()
    (content / "other").write_text("other")
    image = ext4(tmp_path / "image", content)
    monkeypatch.setattr(ext, "MOST_ENTRIES", 500)
    recorder = Recorder()
    result = copied(image, tmp_path / "to", recorder=recorder)
    assert (result.files, result.failed, result.ended) == (1, 1, False)
    (error,) = recorder.told(Level.ERROR)
    assert error.startswith("large: a directory with more than 500 entries")
    monkeypatch.setattr(session, "SKIP_LIMIT", 20_000)
    result = copied(image, tmp_path / "endless", recorder=recorder)
    assert (result.failed, result.ended) == (1, True)
    assert "nothing more can be copied: debugfs prints more than 19.5 KiB" in recorder.told(Level.ERROR)[1]


class Strange(ExtFiles):
    """A file system with a time that no other can have."""

    def changed(self, entry: Entry) -> int:
        return 1 << 70


def test_a_time_that_cannot_be_set_is_no_failure(content: Path, tmp_path: Path) -> None:
    (content / "file").write_text("content")
    (tmp_path / "to").mkdir()
    with debugfs(str(ext4(tmp_path / "image", content)), 0, lambda: None) as program:
        files = Strange(program)
        result = CopyOut(files, "web", Recorder(), lambda: None).copy(files.find(b"/"), str(tmp_path / "to"))
    assert (result.files, result.failed) == (1, 0)


def test_permissions_that_cannot_be_set_are_an_error_in_one_line(
    content: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (content / "file").write_text("content")

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    image = ext4(tmp_path / "image", content)
    monkeypatch.setattr(os, "fchmod", refused)
    recorder = Recorder()
    assert copied(image, tmp_path / "to", recorder=recorder).failed == 2
    assert recorder.told(Level.ERROR)[0].startswith("file: cannot write: operation not permitted")
    assert os.listdir(tmp_path / "to") == ["lost+found"]
