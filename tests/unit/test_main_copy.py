"""main.py copy, and --from copy, as an admin runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.quick_repository import make_repository

from .program_node import Node
from .samples import RUN


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node with a restore point, and an empty second repository."""
    node = Node(tmp_path)
    node.save_restore_point()
    make_repository(tmp_path / "second")
    node.constants["COPY_REPOSITORY"] = str(tmp_path / "second")
    return node


def runs(node: Node, *options: str) -> list[str]:
    done = node.run("restore-points", "--json", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return [point["run"] for point in json.loads(done.stdout)]


def test_restore_points_are_copied_and_read_from_the_copy(node: Node, tmp_path: Path) -> None:
    assert runs(node, "--from", "copy") == []
    done = node.run("copy", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert RUN in done.stdout
    assert runs(node, "--from", "copy") == []
    done = node.run("copy", METRICS_FILE=str(tmp_path / "metrics.prom"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" UTC: 1 restore point copied; none is missing\n")
    assert "virt_rbd_backup_copy_failed 0.0" in (tmp_path / "metrics.prom").read_text()
    shutil.rmtree(node.repository.path)
    assert runs(node, "--from", "copy") == [RUN]


def test_a_copy_that_fails_is_recorded_and_shown_in_the_metrics(node: Node, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "second")
    done = node.run("copy", METRICS_FILE=str(tmp_path / "metrics.prom"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: the copy: restic ")
    assert "virt_rbd_backup_copy_failed 1.0" in (tmp_path / "metrics.prom").read_text()
    checked = node.run("check").stdout
    assert "PROBLEM  the copy in COPY_REPOSITORY: restic cat failed" in checked


def test_without_a_second_repository_it_is_a_configuration_error(node: Node) -> None:
    for arguments in (("copy",), ("restore-points", "--from", "copy"), ("verify", "--from", "copy")):
        done = node.run(*arguments, COPY_REPOSITORY="")
        assert done.returncode == 2
        assert done.stderr.startswith("error: COPY_REPOSITORY is not set\nhint: ")


def test_a_verification_of_the_copy_tells_nothing_about_the_repository(node: Node, tmp_path: Path) -> None:
    assert node.run("copy").returncode == 0
    done = node.run("verify", "--from", "copy")
    assert done.returncode == 3, "its only restore point has a definition that nobody can read"
    assert (tmp_path / "state/copy").is_dir()
    assert not (tmp_path / "state/proofs.json").exists()
