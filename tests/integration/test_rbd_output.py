"""Domains are saved into a second pool: each restore point is a snapshot there, bit for bit."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import rados
import rbd

from tests.integration.changing_domain import KINDS, NAME, changing_domain
from tests.integration.node import Node, snapshot_names, wait_until
from tests.integration.rbd_repository import DEFINITION, PLACE, Repository, exported, rbd_repository
from tests.integration.saving import pieces_read, saved, write
from tests.lab import Lab, LabError
from tests.lab.sample import ARCHIVE, MIB, WEB, large_domain

ROUNDS = 7
WRITING = "virt-rbd-backup.writing"
SPEC = f"vms/{ARCHIVE}"


@pytest.fixture
def repository(node: Node, lab: Lab) -> Iterator[Repository]:
    with rbd_repository(lab, node) as repository:
        yield repository


def test_after_any_changes_every_image_is_saved_bit_for_bit(
    node: Node, lab: Lab, repository: Repository
) -> None:
    counts = []
    with changing_domain(lab) as domain:
        for number in range(ROUNDS):
            log = saved(node, NAME, FULL_READ_DAYS=0)
            run = node.report()["run"]
            counts += [pieces_read(log, target) for target in KINDS]
            for target in KINDS:
                spec = f"vms/{domain.image(target)}"
                (kept,) = [name for name in snapshot_names(lab, spec) if ".kept." in name]
                repository.require_same(f"{spec}@{kept}", f"{PLACE}/{repository.disk(target)}@{run}")
            if number == 3:
                domain.roll_back("vda")
            if number == 5:
                domain.flatten("vde")
            domain.change()
        assert node.run("verify").returncode == 0
        assert node.run("cleanup", "--all").returncode == 0
    later = counts[len(KINDS) :]
    assert sum(read for read, _ in later) < sum(count for _, count in later), "not everything was read again"


def test_only_what_has_changed_is_read_and_the_points_are_listed_and_restored(
    node: Node, lab: Lab, repository: Repository, tmp_path: Path
) -> None:
    first = pieces_read(saved(node, ARCHIVE))
    assert first[0] == first[1]
    before = exported(lab, SPEC, tmp_path / "before")
    assert pieces_read(saved(node, ARCHIVE))[0] == 0
    write(lab, MIB, b"changed")
    assert pieces_read(saved(node, ARCHIVE))[0] == 1
    run = node.report()["run"]
    assert len(repository.snapshots(repository.disk("vda"))) == 3
    done = node.run("restore-points", ARCHIVE)
    assert len(re.findall("Z-[a-z]{4}", done.stdout)) == 3, done.stdout
    assert node.run("status").returncode == 0
    assert node.run("verify", ARCHIVE).returncode == 0
    oldest = repository.snapshots(repository.disk("vda"))[0]
    for at, content in ((oldest, before), ("latest", exported(lab, SPEC, tmp_path / "now"))):
        path = tmp_path / f"{at}.img"
        done = node.run("restore", ARCHIVE, "--at", at, "--to-file", str(path))
        assert done.returncode == 0, done.stderr
        assert path.read_bytes() == content
    done = node.run("restore", ARCHIVE, "--to-pool", "ssd")
    assert done.returncode == 0, done.stderr
    repository.require_same(f"ssd/{ARCHIVE}", f"{PLACE}/{repository.disk('vda')}@{run}")
    lab.delete_image(f"ssd/{ARCHIVE}")


def test_the_manifest_is_a_tar_file_that_rbd_alone_reads(
    node: Node, lab: Lab, repository: Repository, tmp_path: Path
) -> None:
    saved(node, ARCHIVE)
    (name,) = [one for one in repository.images() if one.endswith(DEFINITION)]
    content = exported(lab, f"{PLACE}/{name}@{node.report()['run']}", tmp_path / "tar")
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert {"domain.xml", "manifest.json"} <= set(tar.getnames())


def test_a_target_that_somebody_else_wrote_to_is_refused_by_name(
    node: Node, lab: Lab, repository: Repository
) -> None:
    saved(node, ARCHIVE)
    run, name = node.report()["run"], repository.disk("vda")
    repository.write(name, 5 * MIB, b"foreign")
    done = node.run("backup", ARCHIVE)
    assert done.returncode == 3
    assert f"image {PLACE}/{name} of the repository was written to by others since {run}" in done.stderr
    assert len(repository.snapshots(name)) == 1
    lab.rbd("snap", "rollback", "--no-progress", f"{PLACE}/{name}@{run}")
    assert pieces_read(saved(node, ARCHIVE))[0] == 0
    assert node.run("verify", ARCHIVE).returncode == 0


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


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("", "RBD_OUTPUT_POOL is not set"),
        ("nowhere", "there is no pool nowhere"),
        ("ssd/nowhere", "there is no namespace ssd/nowhere"),
    ],
)
def test_a_place_that_does_not_exist_is_named(node: Node, place: str, problem: str) -> None:
    constants = {"OUTPUT": "rbd", "RBD_OUTPUT_POOL": place}
    done = node.run("check", **constants)
    assert (done.returncode, problem in done.stdout) == (1, True), done.stdout
    for command in (("backup", ARCHIVE), ("restore-points",)):
        done = node.run(*command, **constants)
        if command[0] == "backup" or place != "ssd/nowhere":
            assert done.returncode in (1, 2), done.stderr
            assert problem in done.stderr


def test_a_lost_base_snapshot_costs_a_full_read_but_writes_only_what_differs(
    node: Node, lab: Lab, repository: Repository
) -> None:
    write(lab, 2 * MIB, os.urandom(MIB))
    saved(node, ARCHIVE)
    lab.rbd("snap", "purge", "--no-progress", SPEC)
    write(lab, 2 * MIB, b"other")
    log = saved(node, ARCHIVE)
    assert pieces_read(log)[0] == pieces_read(log)[1]
    image = node.report()["domains"][ARCHIVE]["images"][0]
    assert image["stored_bytes"] <= 4 * MIB
    assert node.run("verify", ARCHIVE).returncode == 0


def test_a_full_read_writes_what_the_repository_has_lost(
    node: Node, lab: Lab, repository: Repository
) -> None:
    write(lab, 2 * MIB, os.urandom(MIB))
    saved(node, ARCHIVE)
    name = repository.disk("vda")
    repository.lose(name, 2 * MIB)
    assert node.run("verify", ARCHIVE).returncode == 3
    saved(node, ARCHIVE)
    assert node.run("verify", ARCHIVE).returncode == 3, "nothing has changed"
    assert node.run("cleanup", "--all").returncode == 0
    log = saved(node, ARCHIVE)
    assert f"{PLACE}/{name} differs from what was saved: pieces at 0; they are written anew" in log
    assert node.run("verify", ARCHIVE).returncode == 0
    repository.require_same(SPEC, f"{PLACE}/{name}@{node.report()['run']}")


def test_a_clone_is_a_domain_that_starts_within_seconds(node: Node, lab: Lab, repository: Repository) -> None:
    saved(node, WEB)
    (run,) = repository.snapshots(repository.disk("vda"))
    words = ("restore", WEB, "--clone", "--suffix", ".clone", "--define", "--name", "copy", "--new-uuid")
    began = time.monotonic()
    done = node.run(*words, "--start")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 170, "at low priority; nothing is copied"
    try:
        assert "cloned to vms/web01-root.clone" in done.stderr
        wait_until(lambda: lab.hypervisor.agent_answers("copy"), 120, "the copy's agent answers")
        saved(node, WEB)
        pruned = node.run("prune", KEEP_LAST=1)
        assert pruned.returncode == 0, pruned.stderr
        assert "has clones: vms/web01-root.clone" in pruned.stderr
        assert run in repository.snapshots(repository.disk("vda")), "what has clones stays"
    finally:
        lab.destroy_domain("copy")
        lab.undefine_domain("copy")
        for name in ("vms/web01-root.clone", "ssd/web01-data.clone"):
            lab.delete_image(name)
    assert node.run("prune", KEEP_LAST=1).returncode == 0
    assert run not in repository.snapshots(repository.disk("vda"))
    assert node.run("verify", WEB).returncode == 0


def test_a_drill_boots_a_clone_without_copying(node: Node, lab: Lab, repository: Repository) -> None:
    saved(node, WEB)
    done = node.run("drill", WEB, "--boot", DRILL_POOL="ssd")
    assert done.returncode == 0, done.stderr
    assert "restored to" not in done.stderr
    assert len(re.findall(r"cloned to ssd/.*", done.stderr)) == 2
    assert "vda verified in ssd" in done.stderr
    assert "booted in" in done.stderr


def test_only_as_many_points_are_kept_as_the_limit_says(node: Node, repository: Repository) -> None:
    for _ in range(3):
        saved(node, ARCHIVE)
    name = repository.disk("vda")
    first, second, third = repository.snapshots(name)
    done = node.run("prune", "--dry-run", KEEP_LAST=2)
    assert (done.returncode, first in done.stdout, second in done.stdout) == (0, True, False), done.stdout
    assert len(repository.snapshots(name)) == 3
    assert node.run("prune", KEEP_LAST=2).returncode == 0
    assert list(repository.snapshots(name)) == [second, third]
    saved(node, ARCHIVE, KEEP_LAST=1)
    (newest,) = repository.snapshots(name)
    assert newest == node.report()["run"]
    assert node.run("verify", ARCHIVE).returncode == 0
    assert pieces_read(saved(node, ARCHIVE))[0] == 0, "what is built on was kept"


def test_what_is_being_read_is_not_removed(node: Node, repository: Repository, tmp_path: Path) -> None:
    saved(node, ARCHIVE)
    (first,) = repository.snapshots(repository.disk("vda"))
    directory = tmp_path / "mounted"
    directory.mkdir()
    with node.started("mount", ARCHIVE, str(directory)) as process:
        wait_until(lambda: (directory / "vda.raw").exists(), 60, "the disk is there as a file")
        saved(node, ARCHIVE)
        done = node.run("prune", KEEP_LAST=1)
        assert done.returncode == 0, done.stderr
        assert "in use at" in done.stderr
        assert first in repository.snapshots(repository.disk("vda"))
        process.send_signal(signal.SIGINT)
        process.wait(300)
    assert node.run("prune", KEEP_LAST=1).returncode == 0
    assert first not in repository.snapshots(repository.disk("vda"))


@pytest.mark.parametrize("moment", ["first backup", "later backup"])
def test_a_killed_run_leaves_no_restore_point_of_its_own_and_all_of_the_others(
    node: Node, lab: Lab, repository: Repository, moment: str
) -> None:
    with large_domain(lab) as name:
        if moment == "later backup":
            saved(node, name)
            change(lab, "vms/large")
        with node.started("backup", name, MAX_WRITE_RATE=24 << 20) as process:
            wait_until(lambda: is_written(lab, repository), 90, "the second disk is being written")
            for pid in [process.pid, *node.processes("")]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        listed = json.loads(node.run("restore-points", "--json").stdout)
        complete = [one for one in listed if one["complete"]]
        assert len(complete) == (moment == "later backup")
        time.sleep(8)  # until the lock of the killed run has expired
        log = saved(node, name)
        assert "an incomplete restore point of an interrupted run" in log
        run = node.report()["run"]
        for target, spec in (("vda", "vms/large-first"), ("vdb", "vms/large")):
            repository.require_same(spec, f"{PLACE}/{repository.disk(target)}@{run}")
        assert len(repository.snapshots(repository.disk("vda"))) == len(complete) + 1
        assert node.run("verify", name).returncode == 0
        assert node.run("cleanup", "--all").returncode == 0


def is_written(lab: Lab, repository: Repository) -> bool:
    """Whether the second disk's image is being written."""
    names = [name for name in repository.images() if name.endswith("vdb")]
    with suppress(LabError):  # it is just being created
        return any(WRITING.encode() in lab.rbd("image-meta", "ls", f"{PLACE}/{name}") for name in names)
    return False


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
