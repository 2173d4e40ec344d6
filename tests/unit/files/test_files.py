"""main.py files: from a restore point to a file of the guest."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..memory_snapshot import MemorySnapshot
from ..mount.mounted_node import OUTPUTS, save
from ..program_node import MAIN, PYTHON, Node
from ..samples import MIB
from ..waiting import wait_until
from .guest_images import change, ext4, partitioned, replace_bytes, run, snapshot

NOISE = random.Random(2).randbytes(10 * MIB)
TABLE = "label: gpt\nstart=2048, size=81920\nstart=88064, size=81920\n"


@pytest.fixture(scope="module", params=OUTPUTS)
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A node with a restore point: a disk with two partitions, and another with one file system."""
    directory = tmp_path_factory.mktemp("guest")
    root, data = directory / "root", directory / "data"
    (root / "etc/größe").mkdir(parents=True)
    (root / "etc/größe/a b").write_text("blank")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/UTC")
    data.mkdir()
    (data / "noise").write_bytes(NOISE)
    disk = partitioned(directory / "disk", TABLE, {88064: ext4(directory / "root.img", root)})
    used = ext4(directory / "data.img", data)
    change(used, "feature needs_recovery")
    node = Node(tmp_path_factory.mktemp("node"))
    save(node, request.param, {"vda": snapshot(disk), "vdb": snapshot(used)})
    node.configure()
    return node


def test_without_a_path_the_file_systems_are_listed(node: Node) -> None:
    done = node.start(["files", "web"])
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [
        ["vda1", "unknown"],
        ["vda2", "ext4"],
        ["vdb", "ext4"],
    ]
    (one,) = json.loads(node.start(["files", "web", "--json", "--disk", "vda2"]).stdout)
    assert (one["name"], one["type"], one["offset"]) == ("vda2", "ext4", 88064 * 512)


def test_a_directory_is_listed_and_a_file(node: Node) -> None:
    done = node.start(["files", "web", "/etc"])
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[-1] for line in done.stdout.splitlines()[1:]] == ["größe", "hosts", "localtime"]
    (one,) = json.loads(node.start(["files", "web", "/etc/hosts", "--json"]).stdout)
    assert (one["name"], one["kind"], one["size"]) == ("hosts", "file", 20)


def test_files_and_directories_are_copied_and_nothing_is_left(node: Node, tmp_path: Path) -> None:
    done = node.start(["files", "web", "/noise", "--to", str(tmp_path)])
    assert done.returncode == 0
    assert (tmp_path / "noise").read_bytes() == NOISE
    assert "vdb was saved in use, its journal is not replayed" in done.stderr
    assert done.stdout == f"copied from vdb to {tmp_path}: files: 1, 10.0 MiB\n"
    done = node.start(["files", "web", "/etc/", "--to", str(tmp_path)])
    assert done.returncode == 0
    assert (tmp_path / "etc/größe/a b").read_text() == "blank"
    assert not (tmp_path / "etc/localtime").is_symlink()
    assert done.stderr == "warning: web: left out a link that leads out of what is copied, 1 time\n"
    assert node.repository.locks() == node.repository.records() == []
    assert [*(node.runtime_dir / "files").iterdir()] == []


WRONG = {
    "files nobody": (2, "there is no restore point of a domain 'nobody'"),
    "files web /": (2, "/ is in several file systems: vda2, vdb"),
    "files web /no": (1, "/no does not exist on vda1 (unknown), vda2 (ext4), vdb (ext4)"),
    "files web /no --disk vdb": (1, "/no does not exist on vdb (ext4)"),
    "files web /etc --disk vdx": (2, "the restore point has no disk vdx, only vda, vdb"),
    "files web /etc --disk vda7": (2, "there is no vda7"),
    "files web /etc --disk vg/root": (2, "there is no vg/root"),
    "files web /etc --disk vda2/home": (2, "there is no vda2/home"),
    "files web /etc --disk vda1": (1, "/etc does not exist on vda1 (unknown)"),
    "files web --to /tmp": (2, "--to requires a PATH"),
    "files web /etc --to /nowhere": (2, "/nowhere is not a directory"),
    "files web /etc --to {directory}": (1, "{directory}/etc exists"),
}


def test_a_wrong_use_is_one_line_and_a_hint(node: Node, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    lines = [line.format(directory=tmp_path).split() for line in WRONG]
    with ThreadPoolExecutor(3) as threads:
        for done, (code, message) in zip(threads.map(node.start, lines), WRONG.values()):
            *_, error, hint = done.stderr.splitlines()
            assert (done.returncode, error) == (code, f"error: {message.format(directory=tmp_path)}")
            assert hint.startswith("hint: ")


def test_a_copy_has_the_last_name_of_the_path_wherever_its_links_lead(tmp_path: Path) -> None:
    content, to = tmp_path / "content", tmp_path / "to"
    (content / "x/.ssh").mkdir(parents=True)
    (content / "x/.ssh/authorized_keys").write_text("hostile")
    (content / ".bash_profile").write_text("hostile")
    (content / "srv").mkdir()
    (content / "srv/db").symlink_to("/x/.ssh")
    (content / "srv/all").symlink_to("/")
    (content / "srv/key").symlink_to("/x/.ssh/authorized_keys")
    node = Node(tmp_path)
    save(node, "restic", {"vda": snapshot(ext4(tmp_path / "image", content))})
    node.configure()
    to.mkdir()
    for path in ("/srv/db", "srv//all/", "/srv/key"):
        assert node.start(["files", "web", path, "--to", str(to)]).returncode == 0
    assert sorted(os.listdir(to)) == ["all", "db", "key"]
    assert os.listdir(to / "db") == ["authorized_keys"]
    assert ".bash_profile" in os.listdir(to / "all")
    for path in ("/", "/srv/all/../.."):
        done = node.start(["files", "web", path, "--to", str(to)])
        assert done.returncode == 1
        assert f"error: {to} is not empty, and the guest chooses the names in its root" in done.stderr
    assert sorted(os.listdir(to)) == ["all", "db", "key"]


def test_a_failure_is_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "content").mkdir()
    (tmp_path / "content/huge").write_text("small")
    (tmp_path / "content/bad").symlink_to("target_to_spoil")
    image = ext4(tmp_path / "image", tmp_path / "content")
    change(image, f"set_inode_field /huge size {1 << 42}")
    replace_bytes(image, b"target_to_spoil", b"target_that_was")
    node = Node(tmp_path)
    save(node, "restic", {"vda": snapshot(image)})
    (tmp_path / "to").mkdir()
    done = node.run("files", "web", "/", "--to", str(tmp_path / "to"))
    assert done.returncode == 3
    assert done.stderr.startswith("error: web: huge: it has 4.0 TiB, there is room for ")
    assert done.stdout.endswith("; failed: 2\n")
    assert os.listdir(tmp_path / "to") == ["lost+found"]
    done = node.run("files", "web", "/")
    assert (done.returncode, done.stderr) == (3, "")
    assert "(debugfs failed: ls: " in done.stdout


def test_a_full_directory_is_exit_code_3_with_the_numbers(node: Node, tmp_path: Path) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=1M,nr_inodes=5", "none", tmp_path)
    try:
        (tmp_path / "to").mkdir()
        done = node.start(["files", "web", "/etc", "--to", str(tmp_path / "to")])
        assert done.returncode == 3
        assert "files: 1, directories: 2, 5 B; failed: 1, and all that" in done.stdout
        assert done.stdout.endswith("; failed: 1, and all that would follow\n")
        assert "nothing more can be copied: cannot write: no space left on device" in done.stderr
    finally:
        run("umount", tmp_path)


def test_what_is_only_in_the_journal_is_not_found_with_that_as_the_hint(node: Node) -> None:
    for arguments in (["/just-created"], ["/just-created", "--disk", "vdb"]):
        done = node.start(["files", "web", *arguments])
        assert done.returncode == 1
        assert "hint: vdb: saved in use, its journal is not replayed: new files may be missing" in done.stderr
    done = node.start(["files", "web", "/no", "--disk", "vda2"])
    assert done.stderr.endswith("hint: list the directory above it\n")


def test_a_signal_ends_it_and_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "content").mkdir()
    with (tmp_path / "content/large").open("wb") as file:
        file.truncate(1 << 33)
    image = ext4(tmp_path / "image", tmp_path / "content")
    node = Node(tmp_path)
    save(node, "restic", {"vda": MemorySnapshot(image.stat().st_size, snapshot(image).data)})
    node.configure()
    to = tmp_path / "to"
    to.mkdir()
    if shutil.disk_usage(to).free < 1 << 33:
        pytest.skip("needs a file system with 8 GiB free")
    environment = {**os.environ, "VIRT_RBD_BACKUP_CONFIG": str(node.settings)}
    command = [PYTHON, str(MAIN), "files", "web", "/large", "--to", str(to)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: os.listdir(to), 60, "it copies")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert os.listdir(to) == []
    assert node.repository.locks() == []


def test_without_debugfs_the_package_is_named(node: Node, tmp_path: Path) -> None:
    for name in ("restic", "fusermount3", "fusermount", "partx", "blkid"):
        (tmp_path / name).symlink_to(shutil.which(name) or f"/usr/sbin/{name}")
    script = "import backup.files.programs as p; p.ADMIN_PATHS = ()\n"
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.path.append({str(MAIN.parent)!r})\n{script}")
    command = ["env", f"PATH={tmp_path}", f"PYTHONPATH={tmp_path}", PYTHON, str(MAIN)]
    done = node.start(["files", "web", "/etc", "--disk", "vda2"], command)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        ["error: debugfs is not installed", "hint: apt-get install e2fsprogs"],
    )
