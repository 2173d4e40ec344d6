"""backup/files/guestfish.py: file systems that debugfs cannot read."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from backup.files.copy_out import LEADS_OUT, CopyOut, named_after
from backup.files.entries import NotFound, Unread
from backup.files.files import Files
from backup.files.guestfish import BATCH, other_systems
from backup.files.order import FilesOrder

from ..memory_snapshot import MemorySnapshot
from ..mount.mounted_node import save
from ..program_node import MAIN, PYTHON, Done, Node
from ..raising import raises
from ..recorder import Recorder
from ..samples import MIB
from .fake_guestfish import KEY
from .guest_images import change, ext4, snapshot
from .test_ext import NAMES, NOISE

NEEDED = ("restic", "fusermount3", "fusermount", "partx", "blkid", "debugfs")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory for PATH: with all that is needed, but no guestfish."""
    directory = tmp_path / "programs"
    directory.mkdir()
    for name in NEEDED:
        (directory / name).symlink_to(shutil.which(name) or f"/usr/sbin/{name}")
    return directory


@pytest.fixture
def systems(programs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose directories the guestfish in PATH reads as file systems."""
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    fake = programs / "guestfish"
    directory = programs.parent / "systems"
    directory.mkdir()
    shutil.copy(Path(__file__).with_name("fake_guestfish.py"), directory / "guestfish")
    fake.write_text(f'#!/bin/sh\nexec {PYTHON} {directory}/guestfish "$@"\n')
    fake.chmod(0o700)
    return directory


DISKS: Mapping[str, Path] = {"vda": Path("/a"), "vdb": Path("/b")}


@pytest.mark.usefixtures("nothing_left")
def test_entries_content_links_and_times_are_those_of_the_guest(systems: Path) -> None:
    (systems / "sdb2/sub").mkdir(parents=True)
    for name in NAMES:
        (systems / "sdb2/sub" / name).write_bytes(os.fsencode(name))
    (systems / "sdb2/noise").write_bytes(NOISE)
    os.utime(systems / "sdb2/noise", (0, 1_500_000_000))
    (systems / "sdb2/link").symlink_to("sub/größe")
    with other_systems(DISKS, lambda: None) as others:
        assert others.names == ["vdb2"]
        with others.opened("vdb2") as files:
            sub = files.find(b"/sub")
            assert [entry.name for entry in files.entries(sub)] == sorted(map(os.fsencode, NAMES))
            for entry in files.entries(sub):
                assert b"".join(files.content(entry)) == entry.name
            noise = files.find(b"noise")
            assert b"".join(files.content(noise)) == NOISE
            assert (noise.size, files.changed(noise)) == (len(NOISE), 1_500_000_000)
            link = next(entry for entry in files.entries(files.find(b"/")) if entry.name == b"link")
            assert files.link_target(link) == "sub/größe".encode()
            assert files.find(b"/link").name == "größe".encode()
            for missing in (b"/no", b"/noise/no"):
                with pytest.raises(NotFound):
                    files.find(missing)


@pytest.mark.usefixtures("nothing_left")
def test_many_entries_are_described_in_batches_and_copied(systems: Path, tmp_path: Path) -> None:
    (systems / "vg+root/many").mkdir(parents=True)
    for number in range(3 * BATCH + 7):
        (systems / "vg+root/many" / ("ä" * 100 + str(number))).write_text(str(number))
    (systems / "vg+root/many/out").symlink_to("/etc/passwd")
    (tmp_path / "to").mkdir()
    with other_systems(DISKS, lambda: None) as others, others.opened("vg/root") as files:
        copy = CopyOut(files, "web", Recorder(), lambda: None)
        result = copy.copy(files.find(b"/many"), str(tmp_path / "to"))
    assert (result.files, result.failed, dict(result.left_out)) == (3 * BATCH + 7, 0, {LEADS_OUT: 1})
    assert (tmp_path / "to/many" / ("ä" * 100 + "17")).read_text() == "17"


@pytest.mark.parametrize(("path", "name"), [("/db", "db"), ("all/", "all"), ("/sub/../db/.", "db")])
def test_a_copy_has_the_last_name_of_the_path_wherever_its_links_lead(
    systems: Path, tmp_path: Path, path: str, name: str
) -> None:
    (systems / "sda1/sub/.ssh").mkdir(parents=True)
    (systems / "sda1/sub/.ssh/keys").write_text("hostile")
    (systems / "sda1/db").symlink_to("sub/.ssh")
    (systems / "sda1/all").symlink_to(".")
    (tmp_path / "to").mkdir()
    with other_systems(DISKS, lambda: None) as others, others.opened("vda1") as files:
        entry = named_after(path, files.find(os.fsencode(path)))
        CopyOut(files, "web", Recorder(), lambda: None).copy(entry, str(tmp_path / "to"))
    assert os.listdir(tmp_path / "to") == [name]
    assert [*(tmp_path / "to").rglob("keys")] != []


def test_an_entry_that_cannot_be_read_does_not_hide_its_directory(systems: Path, tmp_path: Path) -> None:
    (systems / "sda1/many/only").mkdir(parents=True)
    for number in range(BATCH + 7):
        (systems / "sda1/many" / str(number)).write_text(str(number))
    for name in ("many/3unreadable", "many/9unreadable", "many/only/unreadable"):
        (systems / "sda1" / name).touch()
    (tmp_path / "to").mkdir()
    recorder = Recorder()
    with other_systems(DISKS, lambda: None) as others, others.opened("vda1") as files:
        *found, _, last = files.entries(files.find(b"/many"))
        assert len(found) == BATCH + 8
        assert isinstance(last, Unread)
        assert last.error.message == "9unreadable: guestfish failed: lstatns: Input/output error"
        copy = CopyOut(files, "web", recorder, lambda: None).copy(files.find(b"/many"), str(tmp_path / "to"))
    assert (copy.files, copy.failed) == (BATCH + 7, 3)


def test_a_directory_of_very_long_paths_is_listed_as_far_as_guestfish_can(systems: Path) -> None:
    place = systems / "sda1"
    for _ in range(8):
        place = place / ("ä" * 120)
    place.mkdir(parents=True)
    (place / "short").touch()
    (place / ("ä" * 120)).touch()
    with other_systems(DISKS, lambda: None) as others, others.opened("vda1") as files:
        found, unread = files.entries(files.find(os.fsencode(place.relative_to(systems / "sda1"))))
        assert found.name == b"short"
        assert isinstance(unread, Unread)
        assert "a path is too long for guestfish" in unread.error.message


def test_a_guestfish_that_fails_is_one_error(systems: Path) -> None:
    (systems / "broken").mkdir()
    with (
        raises("guestfish failed: mount-ro: mount: wrong fs type"),
        other_systems(DISKS, lambda: None) as others,
        others.opened("broken"),
    ):
        pass


def test_a_subvolume_has_a_name_of_any_bytes(systems: Path) -> None:
    name = os.fsdecode(b"btrfsvol:sdb2+\xff |id \xe2\x80\xa8")
    (systems / name).mkdir()
    (systems / name / "file").write_text("content")
    with other_systems(DISKS, lambda: None) as others:
        assert others.names == [os.fsdecode(b"vdb2/\xff |id \xe2\x80\xa8")]
        with others.opened(others.names[0]) as files:
            assert b"".join(files.content(files.find(b"/file"))) == b"content"


@pytest.mark.parametrize("key", ["", KEY])
def test_no_name_of_a_device_gets_to_the_shell_of_this_node(systems: Path, tmp_path: Path, key: str) -> None:
    mark = tmp_path / "executed"
    hostile = (
        "vgevil/x |id >{}",
        "luks/vgevil/y |id >{}",
        "vgevil/z\u2028!id >{}",
        "luks/vgevil/z key",
        "vg/ä",
    )
    for name in ("vg/sound", "luks/sda1", *hostile):
        (systems / name.format(mark).replace("/", "+")).mkdir()
    with other_systems(DISKS, lambda: None, key) as others:
        assert not mark.exists()
        assert "vg/sound" in others.names
        assert ("vda1" in others.names) == bool(key)
        assert [*others.locked] == ([] if key else ["vda1"])
        for name in others.names:
            if " " in name or name == "vg/ä":
                message = "no device of Linux has such a name: it was not touched"
                with raises(message), others.opened(name):
                    pass
            else:
                with others.opened(name):
                    pass
    assert not mark.exists()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node whose guest has a file system that debugfs cannot read, and one that it can."""
    (tmp_path / "content").mkdir()
    (tmp_path / "content/in-ext4").write_text("ext4")
    node = Node(tmp_path)
    other = MemorySnapshot(MIB, {32768: b"\1CD001\1" + bytes(2041)})  # blkid knows it by that
    save(node, "restic", {"vda": other, "vdb": snapshot(ext4(tmp_path / "image", tmp_path / "content"))})
    node.configure()
    return node


def start(node: Node, programs: Path, *arguments: str) -> Done:
    return node.start(["files", "web", *arguments], ["env", f"PATH={programs}:/bin", PYTHON, str(MAIN)])


def test_it_is_started_only_if_it_is_needed_and_the_package_is_named_where_it_is_missing(
    node: Node, programs: Path
) -> None:
    (programs / "guestfish").write_text("#!/bin/sh\nexit 9\n")
    done = start(node, programs, "/in-ext4")
    text = "/in-ext4 is of vdb (ext4); not searched: vda (iso9660); --disk names one of them"
    assert (done.returncode, done.stderr) == (0, f"warning: web: {text}\n")
    assert done.stdout.splitlines()[0].endswith("  name on vdb")
    done = start(node, programs, "/in-ext4", "--disk", "vdb")
    assert (done.returncode, done.stderr) == (0, "")
    listed = start(node, programs).stdout.splitlines()
    assert listed[1].split() == ["vda", "iso9660", "1.0", "MiB", "read", "with", "libguestfs"]
    done = node.start(["files", "web", "/x"], ["env", f"PATH={programs}", PYTHON, str(MAIN)])
    assert done.returncode == 1
    assert done.stderr == (
        "error: /x does not exist on vdb (ext4); not searched: vda (iso9660)\n"
        "hint: check the path; the others need libguestfs: "
        "apt-get install guestfish; or `mount` shows the disks as files\n"
    )
    done = node.start(["files", "web", "/x", "--disk", "vda"], ["env", f"PATH={programs}", PYTHON, str(MAIN)])
    assert done.stderr == (
        "error: only libguestfs can read vda (iso9660)\n"
        "hint: apt-get install guestfish; or `mount` shows the disks as files\n"
    )


def test_a_file_is_copied_out_of_it(node: Node, programs: Path, systems: Path, tmp_path: Path) -> None:
    (systems / "sda").mkdir()
    (systems / "sda/file").write_text("of iso9660")
    (systems / "sda/file").chmod(0o4755)
    (tmp_path / "to").mkdir()
    done = start(node, programs, "/file", "--to", str(tmp_path / "to"))
    assert done.returncode == 0
    assert done.stdout == f"copied from vda to {tmp_path}/to: files: 1, 10 B\n"
    assert stat.S_IMODE((tmp_path / "to/file").stat().st_mode) == 0o755
    done = start(node, programs, "/none")
    assert done.returncode == 1
    assert "error: /none does not exist on vda (iso9660), vdb (ext4)" in done.stderr


def test_a_file_system_that_cannot_be_read_does_not_hide_others(
    node: Node, programs: Path, systems: Path
) -> None:
    (systems / "broken").mkdir()
    (systems / "vg+lv").mkdir()
    (systems / "vg+lv/file").write_text("of LVM")
    done = start(node, programs, "/file")
    assert done.returncode == 0
    assert "warning: web: broken was not searched: guestfish failed" in done.stderr
    done = start(node, programs, "/none")
    assert done.returncode == 1
    assert "error: guestfish failed: mount-ro: " in done.stderr


def test_a_damaged_ext4_does_not_hide_other_file_systems(
    tmp_path: Path, programs: Path, systems: Path
) -> None:
    (tmp_path / "content").mkdir()
    damaged = ext4(tmp_path / "damaged", tmp_path / "content")
    change(damaged, "set_super_value inode_size 7")
    (systems / "sdb").mkdir()
    (systems / "sdb/file").write_text("of iso9660")
    node = Node(tmp_path)
    other = MemorySnapshot(MIB, {32768: b"\1CD001\1" + bytes(2041)})
    save(node, "restic", {"vda": snapshot(damaged), "vdb": other})
    node.configure()
    done = start(node, programs, "/file")
    assert done.returncode == 0, done.stderr
    assert "warning: web: vda was not searched: debugfs" in done.stderr
    assert done.stdout.splitlines()[1].endswith("file")
    done = start(node, programs, "/none")
    assert (done.returncode, "error: debugfs" in done.stderr) == (1, True)
    (programs / "guestfish").unlink()
    done = start(node, programs, "/file")
    assert (done.returncode, "error: debugfs" in done.stderr) == (1, True), "not what else is missing"


def test_of_btrfs_the_name_of_a_disk_is_its_own_file_system_not_its_subvolumes(
    node: Node, programs: Path, systems: Path
) -> None:
    (systems / "sda/sub").mkdir(parents=True)
    (systems / "sda+sub").mkdir()
    done = start(node, programs, "/")
    assert "error: / is in several file systems: " not in done.stderr, "ext4 has it, at once"
    done = start(node, programs, "/", "--disk", "vda")
    assert (done.returncode, done.stdout.splitlines()[1].split()[-1]) == (0, "sub")
    assert start(node, programs, "/", "--disk", "vda/sub").returncode == 0


SYSTEMS = {
    "vda": "/dev/sda",
    "vda/sub": "btrfsvol:/dev/sda/sub",
    "vda1/home": "btrfsvol:/dev/sda1/home",
    "vda12/home": "btrfsvol:/dev/sda12/home",
    "vda2": "/dev/sda2",
    "vda2/home": "btrfsvol:/dev/sda2/home",
    "vg/lv": "/dev/vg/lv",
    "vg/b": "/dev/vg/b",
    "vg/b/home": "btrfsvol:/dev/vg/b/home",
    "vda2x/lv": "/dev/vda2x/lv",
}
OF_LVM = ["vg/lv", "vg/b", "vg/b/home", "vda2x/lv"]


@pytest.mark.parametrize(
    ("disk", "selected"),
    [
        ("", [*SYSTEMS]),
        ("vda", ["vda"]),
        ("vda2", ["vda2"]),
        ("vda1", ["vda1/home", *OF_LVM]),
        ("vda3", OF_LVM),
        ("vda2/home", ["vda2/home"]),
        ("vg/b", ["vg/b"]),
        ("vg/c", []),
    ],
)
def test_of_a_partition_its_own_subvolumes_and_volumes_of_lvm_are_searched_no_others(
    disk: str, selected: list[str]
) -> None:
    parts: Any = (None,) * 4
    files = Files(FilesOrder("web", disk=disk), *parts)
    assert [*files._selected_systems(SYSTEMS, ["vda"])] == selected


def test_a_volume_of_lvm_may_be_on_any_disk(tmp_path: Path, programs: Path, systems: Path) -> None:
    other = MemorySnapshot(MIB, {32768: b"\1CD001\1" + bytes(2041)})
    node = Node(tmp_path)
    save(node, "restic", {"vda": other, "vdb": other})
    node.configure()
    (systems / "vdata+lv").mkdir()
    fake = programs / "guestfish"
    fake.write_text(fake.read_text().replace("exec", f'echo "$@" >{tmp_path}/arguments\nexec'))
    assert start(node, programs, "/", "--disk", "vdata/lv").returncode == 0
    assert (tmp_path / "arguments").read_text().count("--add=") == 2


def test_a_volume_that_is_not_there_is_said_so(node: Node, programs: Path, systems: Path) -> None:
    (systems / "vg+lv").mkdir()
    done = start(node, programs, "/file", "--disk", "vg/typo")
    assert (done.returncode, "error: there is no vg/typo\n" in done.stderr) == (2, True)
    done = start(node, programs, "/file", "--disk", "vg/lv")
    assert (done.returncode, "error: /file does not exist on vg/lv\n" in done.stderr) == (1, True)


@pytest.fixture
def locked(tmp_path: Path, systems: Path) -> Node:
    """A node whose guest has an encrypted disk, and one of ext4."""
    (systems / "luks+sda").mkdir()
    (systems / "luks+sda/secret").write_text("of LUKS")
    (systems / "sdb").mkdir()
    (systems / "sdb/in-ext4").write_text("ext4")
    node = Node(tmp_path)
    header = b"LUKS\xba\xbe\0\1" + bytes(32) + bytes(552)
    save(node, "restic", {"vda": MemorySnapshot(4 * MIB, {0: header}), "vdb": ext4_snapshot(tmp_path)})
    node.configure()
    (tmp_path / "key").write_text(f"{KEY}\n")
    return node


def ext4_snapshot(directory: Path) -> MemorySnapshot:
    (directory / "content").mkdir()
    (directory / "content/in-ext4").write_text("ext4")
    return snapshot(ext4(directory / "image", directory / "content"))


def test_an_encrypted_disk_is_read_with_its_key_and_named_without_it(
    locked: Node, programs: Path, tmp_path: Path
) -> None:
    listed = start(locked, programs).stdout.splitlines()
    assert listed[1].split(maxsplit=4)[::4] == ["vda", "encrypted: read with libguestfs and --key"]
    done = start(locked, programs, "/secret")
    assert (done.returncode, done.stderr.splitlines()[-2:]) == (
        1,
        [
            "error: /secret does not exist on vda (crypto_LUKS), vdb (ext4)",
            "hint: vda: encrypted, read with --key FILE",
        ],
    )
    done = start(locked, programs, "/secret", "--disk", "vg/lv")
    assert (done.returncode, done.stderr.splitlines()[-2:]) == (
        2,
        ["error: there is no vg/lv", "hint: vda: encrypted, read with --key FILE"],
    )
    (tmp_path / "to").mkdir()
    with_key = ("--key", str(tmp_path / "key"))
    done = start(locked, programs, "/secret", *with_key, "--to", str(tmp_path / "to"))
    assert done.stdout == f"copied from vda to {tmp_path}/to: files: 1, 7 B\n"
    done = start(locked, programs, "/in-ext4", *with_key)
    assert done.returncode == 0, "others are searched too"
    done = start(locked, programs, "/", *with_key)
    assert "error: / is in several file systems: vda, vdb" in done.stderr
    assert start(locked, programs, "/", *with_key, "--disk", "vda").returncode == 0


def test_a_key_comes_through_a_pipe_and_is_printed_nowhere(locked: Node, programs: Path) -> None:
    script = f"printf %s '{KEY}' | {PYTHON} {MAIN} --log-level debug files web /secret --key /dev/stdin"
    done = locked.start([], ["env", f"PATH={programs}:/bin", "sh", "-c", script])
    assert done.returncode == 0, done.stderr
    assert "sesame" not in done.stderr + done.stdout


def test_a_wrong_key_is_one_line_and_a_hint(locked: Node, programs: Path, tmp_path: Path) -> None:
    wrong = {
        b"wrong": (1, "error: the key does not open vda: guestfish failed: luks-open-ro: "),
        b"": (2, f"error: the key {tmp_path}/key is not a passphrase in one line"),
        b"two\nlines\n": (2, f"error: the key {tmp_path}/key is not a passphrase in one line"),
        None: (2, f"error: cannot read the key {tmp_path}/key: no such file"),
    }
    for content, (code, message) in wrong.items():
        (tmp_path / "key").unlink()
        if content is not None:
            (tmp_path / "key").write_bytes(content)
        done = start(locked, programs, "/secret", "--key", str(tmp_path / "key"))
        if content is None:
            (tmp_path / "key").touch()
        assert done.returncode == code, done.stderr
        *_, error, hint = done.stderr.splitlines()
        assert error.startswith(message)
        assert hint.startswith("hint: ")
    done = start(locked, programs, "--key", str(tmp_path / "key"))
    assert (done.returncode, "error: --key requires a PATH" in done.stderr) == (2, True)
