"""Domains are saved into files of a directory, bit for bit, which QEMU alone reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import rados
import rbd

from tests.integration.changing_domain import KINDS, NAME, changing_domain
from tests.integration.directory_repository import Repository, directory_repository, qemu_img
from tests.integration.node import SLOW, Node, snapshot_names, wait_until
from tests.integration.saving import pieces_read, saved, write
from tests.lab import Lab
from tests.lab.sample import ARCHIVE, MIB, WEB, large_domain

ROUNDS = 5
SPEC = f"vms/{ARCHIVE}"
WRITTEN = "*/.*.partial/vdb.qcow2"


@pytest.fixture
def repository(node: Node, tmp_path: Path) -> Iterator[Repository]:
    with directory_repository(node, tmp_path / "backups") as repository:
        yield repository


def exported(lab: Lab, spec: str, path: Path) -> Path:
    lab.rbd("export", "--no-progress", spec, str(path))
    return path


def test_after_any_changes_every_image_is_saved_bit_for_bit(
    node: Node, lab: Lab, repository: Repository, tmp_path: Path
) -> None:
    seen: dict[str, dict[str, Path]] = {}
    with changing_domain(lab) as domain:
        for number in range(ROUNDS):
            # the oldest of three is folded into the next one; the fourth run begins another chain
            saved(node, NAME, FULL_READ_DAYS=0, KEEP_LAST=3, DIRECTORY_CHAIN=2)
            run = node.report()["run"]
            seen[run] = {}
            for target in KINDS:
                spec = f"vms/{domain.image(target)}"
                (kept,) = [name for name in snapshot_names(lab, spec) if ".kept." in name]
                seen[run][target] = exported(lab, f"{spec}@{kept}", tmp_path / f"{number}-{target}")
            if number == 2:
                domain.roll_back("vda")
            if number == 4:
                domain.flatten("vde")
            domain.change()
        assert repository.runs() == [*seen][-3:]
        for run in repository.runs():
            for target, raw in seen[run].items():
                repository.require_same(raw, run, target)
        assert node.run("verify").returncode == 0
        assert node.run("cleanup", "--all").returncode == 0


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
def test_points_are_listed_restored_and_read_with_qemu_alone(
    node: Node, lab: Lab, tmp_path: Path, kind: str
) -> None:
    with directory_repository(node, tmp_path / "backups", kind) as repository:
        log = saved(node, ARCHIVE, "--verify")
        assert pieces_read(log)[0] == pieces_read(log)[1]
        before = exported(lab, SPEC, tmp_path / "before")
        write(lab, MIB, os.urandom(7))
        assert pieces_read(saved(node, ARCHIVE))[0] == (1 if kind == "qcow2" else pieces_read(log)[1])
        now = exported(lab, SPEC, tmp_path / "now")
        oldest, newest = repository.runs()
        repository.require_same(before, oldest)
        repository.require_same(now, newest)
        assert repository.chain(newest) == ([newest, oldest] if kind == "qcow2" else [newest])
        with tarfile.open(repository.disk(oldest).with_name("definition.tar")) as tar:
            assert {"domain.xml", "manifest.json"} <= set(tar.getnames())
        done = node.run("restore-points", ARCHIVE)
        assert len(re.findall("Z-[a-z]{4}", done.stdout)) == 2, done.stdout
        assert node.run("status").returncode == 0
        assert node.run("verify", ARCHIVE).returncode == 0
        for at, content in ((oldest, before), ("latest", now)):
            path = tmp_path / f"{at}.img"
            done = node.run("restore", ARCHIVE, "--at", at, "--to-file", str(path))
            assert done.returncode == 0, done.stderr
            assert path.read_bytes() == content.read_bytes()
        done = node.run("restore", ARCHIVE, "--to-pool", "ssd")
        assert done.returncode == 0, done.stderr
        assert exported(lab, f"ssd/{ARCHIVE}", tmp_path / "back").read_bytes() == now.read_bytes()
        lab.delete_image(f"ssd/{ARCHIVE}")


def test_an_overlay_shows_a_point_at_once(
    node: Node, lab: Lab, repository: Repository, tmp_path: Path
) -> None:
    saved(node, ARCHIVE)
    (run,) = repository.runs()
    overlay = tmp_path / "overlay.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", repository.disk(run), "-F", "qcow2", overlay)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", exported(lab, SPEC, tmp_path / "raw"), overlay)


def flip(path: Path, mark: bytes) -> None:
    """Change a bit of the first of these bytes, which are somewhere in a file."""
    data = path.read_bytes()
    assert data.count(mark) == 1
    with path.open("rb+") as file:
        file.seek(data.index(mark))
        file.write(bytes([mark[0] ^ 1]))


def test_verification_finds_a_flipped_byte(node: Node, lab: Lab, repository: Repository) -> None:
    write(lab, 2 * MIB, mark := os.urandom(16))
    saved(node, ARCHIVE)
    flip(repository.disk(node.report()["run"]), mark)
    done = node.run("verify", ARCHIVE)
    assert done.returncode == 3, done.stderr
    assert "vda" in done.stderr


def test_a_full_read_makes_a_whole_point_on_top_of_a_damaged_one(
    node: Node, lab: Lab, repository: Repository, tmp_path: Path
) -> None:
    write(lab, 2 * MIB, mark := os.urandom(16))
    saved(node, ARCHIVE)
    path = repository.disk(node.report()["run"])
    flip(path, mark)
    saved(node, ARCHIVE)
    assert node.run("verify", ARCHIVE).returncode == 3, "nothing has changed"
    assert node.run("cleanup", "--all").returncode == 0
    log = saved(node, ARCHIVE)
    assert "vda.qcow2 differs from what was saved: pieces at 0; they are written anew" in log
    assert node.run("verify", ARCHIVE).returncode == 0
    run = node.report()["run"]
    repository.require_same(exported(lab, SPEC, tmp_path / "now"), run)
    assert path.parent.name in repository.chain(run)


def test_a_flipped_byte_is_restored_only_where_that_is_ordered(node: Node, lab: Lab, tmp_path: Path) -> None:
    with directory_repository(node, tmp_path / "backups", "raw") as repository:
        write(lab, 2 * MIB, os.urandom(16))
        saved(node, ARCHIVE)
        with repository.disk(node.report()["run"]).open("rb+") as file:
            file.seek(2 * MIB)
            (byte,) = file.read(1)
            file.seek(2 * MIB)
            file.write(bytes([byte ^ 1]))
            file.seek(0)
            damaged = file.read()
        images = lab.rbd("ls", "ssd")
        done = node.run("restore", ARCHIVE, "--to-pool", "ssd")
        assert done.returncode == 1, done.stderr
        assert f"{ARCHIVE}: vda" in done.stderr, done.stderr
        assert lab.rbd("ls", "ssd") == images
        done = node.run("restore", ARCHIVE, "--to-pool", "ssd", "--damaged")
        assert done.returncode == 3, done.stderr
        assert exported(lab, f"ssd/{ARCHIVE}", tmp_path / "back").read_bytes() == damaged
        lab.delete_image(f"ssd/{ARCHIVE}")


def test_a_running_domain_boots_from_its_restore_point(
    node: Node, lab: Lab, repository: Repository, tmp_path: Path
) -> None:
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    (tmp_path / "images").mkdir(mode=0o711)
    saved(node, WEB)
    lab.wait_for_ticks(WEB, beyond=lab.ticks(WEB))
    saved(node, WEB)
    done = node.run("files", WEB)
    assert (done.returncode, "ext4" in done.stdout) == (0, True), done.stdout + done.stderr
    done = node.run("drill", WEB, "--instant", DRILL_DIR=str(tmp_path / "images"))
    assert done.returncode == 0, done.stderr


def test_only_as_many_points_are_kept_as_the_limit_says(node: Node, repository: Repository) -> None:
    for _ in range(3):
        saved(node, ARCHIVE)
    first, second, third = repository.runs()
    done = node.run("prune", "--dry-run", KEEP_LAST=2)
    assert (done.returncode, first in done.stdout, second in done.stdout) == (0, True, False), done.stdout
    assert len(repository.runs()) == 3
    assert node.run("prune", KEEP_LAST=2).returncode == 0
    assert repository.runs() == [second, third]
    assert repository.chain(third) == [third, second]
    saved(node, ARCHIVE, KEEP_LAST=1)
    (newest,) = repository.runs()
    assert newest == node.report()["run"]
    assert repository.chain(newest) == [newest]
    assert node.run("verify", ARCHIVE).returncode == 0
    assert pieces_read(saved(node, ARCHIVE))[0] == 0, "what is built on was kept"


def test_what_is_being_read_is_removed_by_no_node(node: Node, repository: Repository, tmp_path: Path) -> None:
    saved(node, ARCHIVE)
    (first,) = repository.runs()
    directory = tmp_path / "mounted"
    directory.mkdir()
    with node.started("mount", ARCHIVE, str(directory)) as process:
        wait_until(lambda: (directory / "vda.raw").exists(), 60, "the disk is there as a file")
        saved(node, ARCHIVE)
        done = node.run_elsewhere("prune", KEEP_LAST=1)
        assert done.returncode == 0, done.stderr
        assert "is in use" in done.stderr
        assert first in repository.runs()
        process.send_signal(signal.SIGINT)
        process.wait(300)
    assert node.run_elsewhere("prune", KEEP_LAST=1).returncode == 0
    assert repository.runs() == [node.report()["run"]]


def test_a_killed_run_leaves_no_restore_point_of_its_own_and_all_of_the_others(
    node: Node, lab: Lab, repository: Repository, tmp_path: Path
) -> None:
    with large_domain(lab) as name:
        saved(node, name)
        change(lab, "vms/large")
        with node.started("backup", name, MAX_READ_RATE=SLOW) as process:
            wait_until(lambda: any(repository.path.glob(WRITTEN)), 90, "the disk is being written")
            for pid in [process.pid, *node.processes("")]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not node.processes("qemu-nbd"), 60, "the servers have ended")
        listed = json.loads(node.run("restore-points", "--json").stdout)
        assert [one["complete"] for one in listed] == [True, False]
        time.sleep(8)  # until the lock of the killed run has expired
        log = saved(node, name)
        assert "an incomplete restore point of an interrupted run" in log
        run = node.report()["run"]
        for target, spec in (("vda", "vms/large-first"), ("vdb", "vms/large")):
            repository.require_same(exported(lab, spec, tmp_path / target), run, target)
        assert len(repository.runs()) == 2
        assert not any(".partial" in file for file in repository.files())
        assert node.run("verify", name).returncode == 0
        assert node.run("cleanup", "--all").returncode == 0


@contextmanager
def small_file_system(path: Path, size: int) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def test_a_directory_that_is_full_fails_the_domain_and_nothing_is_left(
    node: Node, lab: Lab, tmp_path: Path
) -> None:
    place = tmp_path / "small"
    with (
        large_domain(lab) as name,
        small_file_system(place, 320 * MIB),
        directory_repository(node, place) as repository,
    ):
        saved(node, ARCHIVE)
        before = repository.files()
        filler = place / "filler"
        filler.write_bytes(bytes(200 * MIB))
        done = node.run("backup", name)
        assert done.returncode == 3
        assert re.search(r"vdb \(vms/large\) needs .*, .* has room for", done.stderr), done.stderr
        filler.unlink()
        with node.started("backup", name, MAX_READ_RATE=SLOW) as process:
            wait_until(
                lambda: process.poll() is not None or any(place.glob(WRITTEN)),
                90,
                "the disk is being written",
            )
            if process.poll() is None:
                # somebody else takes the room
                with filler.open("wb", buffering=0) as file, suppress(OSError):
                    while True:
                        file.write(bytes(MIB))
            printed, _ = process.communicate(timeout=300)
        assert process.returncode == 3, printed
        assert "no space left on device" in printed, printed
        filler.unlink()
        assert repository.files() == before
        assert node.run("verify", ARCHIVE).returncode == 0


def test_a_directory_that_vanishes_fails_the_domain(node: Node, lab: Lab, repository: Repository) -> None:
    def vanished() -> bool:
        shutil.rmtree(repository.path, ignore_errors=True)
        return not repository.path.exists()

    with large_domain(lab) as name:
        with node.started("backup", name, MAX_READ_RATE=SLOW) as process:
            wait_until(lambda: any(repository.path.glob(WRITTEN)), 90, "the disk is being written")
            wait_until(vanished, 30, "it has vanished, with what is made meanwhile")
            printed, _ = process.communicate(timeout=300)
        assert process.returncode == 3
        assert "no such file or directory" in printed
        assert "is the file system of DIRECTORY_OUTPUT mounted" in printed
        assert not repository.path.exists()
        done = node.run("backup", name)
        assert done.returncode == 1
        assert f"cannot read {repository.path}: no such file or directory" in done.stderr
        assert node.run("check").returncode == 1
        repository.path.mkdir()
        saved(node, name)
        assert node.run("cleanup", "--all").returncode == 0


def change(lab: Lab, spec: str) -> None:
    """Write all over an image."""
    pool, name = spec.split("/")
    with (
        rados.Rados(conffile=str(lab.ceph_conf)) as cluster,
        cluster.open_ioctx(pool) as opened,
        rbd.Image(opened, name) as image,
    ):
        for offset in range(0, 200 * MIB, 4 * MIB):
            image.write(os.urandom(MIB), offset)
