"""main.py mount: a restore point's disks as files, and every way in which it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from outputs.restic_repository.child import INTERRUPT_LIMIT

from ..memory_snapshot import MemorySnapshot
from ..program_node import MAIN, PYTHON, Node
from ..samples import MIB
from ..transfer.test_backup_stream import noise
from ..waiting import wait_until
from .mounted_node import NVRAM, OUTPUTS, START, is_mounted, mounted, save, unlocked

VDA = MemorySnapshot(37 * MIB + 513, {4 * MIB + 5: noise(6 * MIB), 30 * MIB - 7: noise(7 * MIB)})
VDB = MemorySnapshot(5 * MIB, {0: b"small"})
EMPTY = MemorySnapshot(0)
DISKS: Mapping[str, MemorySnapshot] = {"vda": VDA, "vdb": VDB, "vdc": EMPTY}


@pytest.fixture(scope="module", params=OUTPUTS)
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A node with a restore point that one of the outputs has saved."""
    node = Node(tmp_path_factory.mktemp("node"))
    disks = DISKS if request.param == "restic" else {"vda": VDA, "vdb": VDB}
    save(node, request.param, disks)
    node.configure()
    return node


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "a 'mount' of größe"
    directory.mkdir()
    yield directory
    assert not is_mounted(directory)
    assert os.listdir(directory) == []


def test_the_disks_are_files_byte_for_byte_and_others_describe_the_domain(
    node: Node, directory: Path
) -> None:
    with mounted(node, directory) as running:
        names = set(os.listdir(directory))
        assert names - {"vdc.raw"} == {"vda.raw", "vdb.raw", "domain.xml", "nvram.fd", "manifest.json"}
        assert (directory / "vda.raw").read_bytes() == VDA.content
        assert (directory / "vdb.raw").read_bytes() == VDB.content
        if "vdc.raw" in names:
            assert (directory / "vdc.raw").read_bytes() == b""
        assert (directory / "domain.xml").read_bytes() == b"<domain>inactive</domain>"
        assert (directory / "nvram.fd").read_bytes() == NVRAM
        assert b'"target": "vda"' in (directory / "manifest.json").read_bytes()
        assert len(node.repository.locks()) == 1, "so a prune has to wait"
    assert "web, restore point of 2024-02-03 04:05:06 UTC" in running.printed
    assert str(directory)[:10] in running.printed
    assert "`restic prune` has to wait" in running.printed
    assert len(running.printed.splitlines()) == 1
    assert node.repository.locks() == node.repository.records() == []


def test_files_are_sparse_and_only_for_their_owner_to_read(node: Node, directory: Path) -> None:
    with mounted(node, directory):
        found = (directory / "vda.raw").stat()
        assert stat.S_IMODE(found.st_mode) == 0o400
        assert stat.S_IMODE(directory.stat().st_mode) == 0o500
        assert 13 * MIB <= found.st_blocks * 512 < 30 * MIB
        assert found.st_size == VDA.size
        with pytest.raises(OSError, match="Read-only file system"):
            (directory / "vda.raw").open("r+b")
        with pytest.raises(OSError, match="Read-only file system"):
            (directory / "new").touch()
        options = next(line for line in Path("/proc/self/mounts").read_text().splitlines() if "größe" in line)
        assert "allow_other" not in options


def test_df_shows_its_size(node: Node, directory: Path) -> None:
    with mounted(node, directory):
        found = os.statvfs(directory)
        assert found.f_blocks * found.f_frsize >= sum(
            (directory / name).stat().st_blocks * 512 for name in os.listdir(directory)
        )
        assert (found.f_bavail, found.f_bfree, found.f_namemax) == (0, 0, 255)
        done = subprocess.run(
            ["df", "--output=avail,pcent", directory], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split()[-2:] == ["0", "100%"]


def test_reads_at_any_offset_by_several_readers_are_right(node: Node, directory: Path) -> None:
    with mounted(node, directory), (directory / "vda.raw").open("rb", buffering=0) as file:
        content = VDA.content
        for start, length in [(0, 1), (4 * MIB, 100), (30 * MIB - 10, 3 * MIB), (VDA.size - 5, 100)]:
            assert os.pread(file.fileno(), length, start) == content[start : start + length]
        readers = [subprocess.Popen(["cmp", directory / "vda.raw", directory / "vda.raw"]) for _ in range(3)]
        assert [reader.wait(START) for reader in readers] == [0, 0, 0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_even_while_a_file_is_open(
    node: Node, directory: Path, number: signal.Signals, code: int
) -> None:
    with mounted(node, directory) as running:
        file = os.open(directory / "vda.raw", os.O_RDONLY)
        assert os.read(file, 10) == bytes(10)
        assert running.end(number) == code
        assert not is_mounted(directory)
        with pytest.raises(OSError, match="Transport endpoint is not connected"):
            os.close(file)
    assert node.repository.locks() == node.repository.records() == []


def test_a_signal_ends_it_while_a_reader_waits_for_a_repository_that_hangs(
    node: Node, directory: Path
) -> None:
    with mounted(node, directory) as running:
        restic = running.restic
        os.kill(restic, signal.SIGSTOP)
        with subprocess.Popen(
            ["cat", directory / "vda.raw"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as reader:
            time.sleep(0.5)
            assert reader.poll() is None
            began = time.monotonic()
            assert running.end(signal.SIGTERM) == 143
            assert time.monotonic() - began < INTERRUPT_LIMIT + 20, "then a restic that is stopped is killed"
            assert reader.wait(START)
        assert running.errors == "error: interrupted\n"
        assert not Path(f"/proc/{restic}").exists()
    assert node.repository.locks() == node.repository.records() == []


def test_unmounting_it_is_a_success(node: Node, directory: Path) -> None:
    with mounted(node, directory) as running:
        subprocess.run(["fusermount3", "-u", directory], check=True)
        assert running.process.wait(START) == 0
    assert running.errors == ""
    assert node.repository.locks() == node.repository.records() == []


def test_after_a_kill_the_next_mount_on_the_directory_cleans_up(node: Node, directory: Path) -> None:
    with mounted(node, directory) as running:
        assert directory.stat().st_uid == 0
        restic = running.restic
        running.end(signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{restic}").exists(), START, "restic ends with its parent")
        unlocked(node)
        assert directory.stat().st_uid == 0, "the kernel still knows that"
        with pytest.raises(OSError, match="Transport endpoint is not connected"):
            os.listdir(directory)
        with mounted(node, directory):
            assert (directory / "vdb.raw").read_bytes() == VDB.content
    shutil.rmtree(node.runtime_dir / "restic")


def test_a_link_to_the_directory_is_as_good_also_after_a_kill(
    node: Node, directory: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(directory)
    with mounted(node, link) as running:
        running.end(signal.SIGKILL)
        unlocked(node)
        with mounted(node, link):
            assert (directory / "vdb.raw").read_bytes() == VDB.content
    shutil.rmtree(node.runtime_dir / "restic")


def test_a_restic_that_is_killed_ends_it_with_the_reason(node: Node, directory: Path) -> None:
    with mounted(node, directory) as running:
        os.kill(running.restic, signal.SIGKILL)
        assert running.process.wait(START) == 1
        assert running.errors == "error: restic mount was killed by SIGKILL\n"
        assert not is_mounted(directory)
    assert node.repository.locks() == node.repository.records() == []


def test_what_cannot_be_read_is_an_error_of_that_read_and_a_line_with_the_reason(
    tmp_path: Path, directory: Path
) -> None:
    node = Node(tmp_path)
    node.configure()
    save(node, "restic", DISKS)
    for path in (node.repository.path / "data").glob("*/*"):
        if (size := path.stat().st_size) > MIB:  # those of vda
            path.chmod(0o600)
            with path.open("r+b") as file:
                file.seek(size // 2)
                file.write(b"damaged")
    with mounted(node, directory) as running:
        with pytest.raises(OSError, match="Input/output error"):
            (directory / "vda.raw").read_bytes()
        assert (directory / "vdb.raw").read_bytes() == VDB.content
        lines = running.errors.splitlines()
        assert lines
        for line in lines:
            assert re.match(r"error: vda.raw: cannot read at offset \d+: cannot read .*/vda.img from", line)
        assert running.end(signal.SIGTERM) == 143


WRONG = {
    "mount nobody {directory}/empty": "there is no restore point of a domain 'nobody'",
    "mount web {directory}/empty --at 2020": "no complete restore point of web matches --at '2020'",
    "mount web {directory}/none": "{directory}/none does not exist",
    "mount web {directory}/file": "{directory}/file is not a directory",
    "mount web {directory}/full": "{directory}/full is not empty",
    "mount web {directory}/other": "{directory}/other belongs to another user (UID 65534)",
    "mount web {directory}/repository/locks": "{directory}/repository/locks is in the repository",
}


def test_a_wrong_use_is_one_line_and_a_hint(tmp_path: Path) -> None:
    node = Node(tmp_path)
    save(node, "restic", {"vda": VDB})
    for name in ("empty", "full/more", "other"):
        (tmp_path / name).mkdir(parents=True)
    os.chown(tmp_path / "other", 65534, 0)
    (tmp_path / "file").touch()
    done = node.run_each(*(line.format(directory=tmp_path) for line in WRONG))
    for line, message in WRONG.items():
        one = done[line.format(directory=tmp_path)]
        error, hint = one.stderr.splitlines()
        assert (one.returncode, error) == (2, f"error: {message.format(directory=tmp_path)}")
        assert hint.startswith("hint: ")
    assert node.repository.locks() == []


def test_a_directory_that_shows_a_restore_point_is_not_used_twice(node: Node, directory: Path) -> None:
    with mounted(node, directory):
        done = node.start(["mount", "web", str(directory)])
        assert done.returncode == 2
        assert "shows a restore point already" in done.stderr
        assert is_mounted(directory)


def test_a_mount_that_is_stopped_is_not_used_twice_either(node: Node, directory: Path) -> None:
    with mounted(node, directory) as running:
        os.kill(running.process.pid, signal.SIGSTOP)
        try:
            done = node.start(["mount", "web", str(directory)])
        finally:
            os.kill(running.process.pid, signal.SIGCONT)
    assert (done.returncode, "does not answer" in done.stderr) == (2, True)


def test_a_dead_mount_of_another_program_is_not_touched(node: Node, directory: Path) -> None:
    script = f"import pyfuse3, os; pyfuse3.init(pyfuse3.Operations(), {str(directory)!r}, {{'fsname=other'}})"
    subprocess.run(["/usr/bin/python3", "-c", f"{script}; os._exit(0)"], check=True)
    try:
        done = node.start(["mount", "web", str(directory)])
        assert done.returncode == 2
        assert "has ended" in done.stderr
        assert f"fusermount3 -u '{str(directory)[:5]}" in done.stderr
        assert is_mounted(directory)
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def test_without_fuse_the_package_is_named(node: Node, directory: Path, tmp_path: Path) -> None:
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    (bin_directory / "restic").symlink_to(shutil.which("restic") or "")
    done = node.start(["mount", "web", str(directory)], ["env", f"PATH={bin_directory}", PYTHON, str(MAIN)])
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        ["error: fusermount3 is not installed, which restic mount needs", "hint: apt-get install fuse3"],
    )
