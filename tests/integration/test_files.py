"""Single files come out of a restore point as they were in the guest."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.integration.node import Node
from tests.lab import Lab, RbdDisk
from tests.lab.sample import MIB, WEB, remove_domain
from tests.unit.files.guest_images import ext4, partitioned

NAME = "files01"
TABLE = "label: gpt\nstart=2048, size=2048\nstart=4096, size=262144\n"
NAMES = ("größe", "名前", "имя", "ملف", "a b", "new\nline", "-x", 'quo"te', "x" * 255)
NOISE = random.Random(7).randbytes(10 * MIB)
LIMIT = 170  # seconds under load; on an idle machine 3 to list, 4 to copy 10 MiB


def fill(content: Path) -> Path:
    """Make a guest's directory: names of all alphabets, 10 MiB, a sparse file, links."""
    (content / "etc/conf.d").mkdir(parents=True)
    for name in NAMES:
        (content / "etc/conf.d" / name).write_text(f"content of {name}")
    (content / "noise").write_bytes(NOISE)
    with (content / "sparse").open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(33 * MIB)
        file.write(b"in the middle")
    (content / "etc/inside").symlink_to("conf.d/größe")
    (content / "etc/outside").symlink_to("/etc/passwd")
    return content


@pytest.fixture
def content(tmp_path: Path) -> Path:
    return fill(tmp_path / "content")


@pytest.fixture(params=["restic", "restic_incremental"])
def saved(
    request: pytest.FixtureRequest, node: Node, lab: Lab, content: Path, tmp_path: Path
) -> Iterator[Node]:
    """A node whose output has saved a domain: a disk with two partitions, and one without any."""
    node.constants["OUTPUT"] = request.param
    system = ext4(tmp_path / "system", content, size="96M")
    disk = partitioned(tmp_path / "disk", TABLE, {4096: system})
    specs = {f"vms/{NAME}-root": disk, f"vms/{NAME}-data": system}
    try:
        for spec, image in specs.items():
            lab.rbd("import", "--no-progress", str(image), spec)
        lab.define_domain(NAME, [RbdDisk(target, spec) for target, spec in zip(("vda", "vdb"), specs)])
        done = node.run("backup", NAME)
        assert done.returncode == 0, done.stderr
        yield node
    finally:
        cleaned = node.run("cleanup", "--all")
        remove_domain(lab, NAME, *specs)
    assert cleaned.returncode == 0, cleaned.stderr


def digests(directory: Path) -> dict[str, str]:
    """Give the checksum of each file below a directory, by its path; of a link what it leads to."""
    found = {}
    for path in directory.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(directory))] = os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def timed(record: Callable[[str, object], None], what: str, node: Node, *words: str) -> Any:
    began = time.monotonic()
    done = node.run("files", NAME, *words)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    record(what, f"{seconds:.2f} s")
    assert seconds < LIMIT
    return done


def test_files_of_disks_and_partitions_are_listed_and_copied_with_their_checksums(
    saved: Node, content: Path, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    done = saved.run("files", NAME, "--json")
    kinds = {one["name"]: one["type"] for one in json.loads(done.stdout)}
    assert kinds == {"vda1": "", "vda2": "ext4", "vdb": "ext4"}
    for disk in ("vda2", "vdb"):
        listed = timed(record_testsuite_property, f"list {disk}", saved, "/", "--disk", disk, "--json")
        names = {one["name"] for one in json.loads(listed.stdout)}
        assert names == {"etc", "lost+found", "noise", "sparse"}
        to = tmp_path / disk
        to.mkdir()
        timed(
            record_testsuite_property,
            f"copy 10 MiB of {disk}",
            saved,
            "/noise",
            "--disk",
            disk,
            "--to",
            str(to),
        )
        assert (to / "noise").read_bytes() == NOISE
        (to / "noise").unlink()
        done = timed(
            record_testsuite_property, f"copy all of {disk}", saved, "/", "--disk", disk, "--to", str(to)
        )
        assert "left out a link that leads out of what is copied, 1 time" in done.stderr
        assert digests(to) == {path: one for path, one in digests(content).items() if path != "etc/outside"}
        assert (to / "sparse").stat().st_blocks * 512 < 2 * MIB


def test_a_file_of_a_running_guest_comes_on_another_node_that_has_nothing_but_the_settings(
    node: Node, lab: Lab, tmp_path: Path
) -> None:
    assert node.run("backup", WEB).returncode == 0
    elsewhere = {"STATE_DIR": str(tmp_path / "empty"), "CEPH_CONF": "/nowhere", "LIBVIRT_URI": "none:///"}
    to = tmp_path / "to"
    to.mkdir()
    done = node.run_elsewhere("files", WEB, "/tick", "--disk", "vda", "--to", str(to), **elsewhere)
    assert done.returncode == 0, done.stderr
    assert 0 < int((to / "tick").read_text()) <= lab.ticks(WEB)
    assert "journal" not in done.stderr, "it was saved frozen"
