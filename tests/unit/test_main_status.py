"""main.py status as an admin runs it, on a node whose cluster can't be reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .program_node import Node
from .samples import UUID


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    node.save_restore_point()
    return node


def test_domains_are_shown_although_the_cluster_does_not_answer(node: Node) -> None:
    done = node.run("status")
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert head.split()[0] == "domain"
    assert row.split()[0] == "web"
    assert "no cluster can be asked for base snapshots and active jobs" in done.stderr


def test_a_check_ends_with_the_exit_codes_of_nagios(node: Node) -> None:
    lines = {
        "late": "status --max-age 26h",
        "good": "status --max-age 26h --json web",
        "wrong": "status --max-age 26",
        "unknown": "status wbe",
        "huge": "status --max-age 9999999999d",
    }
    done = node.run_each(*lines.values())
    late, good, wrong, unknown, huge = (done[line] for line in lines.values())
    assert (late.returncode, good.returncode) == (0, 0), late.stdout
    assert late.stdout == "OK: 1 of 1 domains have a restore point of the last 26 h\n"
    assert json.loads(good.stdout)["domains"][0]["uuid"] == UUID
    assert (wrong.returncode, unknown.returncode) == (2, 2)
    assert "invalid age '26': expected a number and m, h or d, such as 26h" in wrong.stderr
    assert "this node backs up no domain 'wbe'" in unknown.stderr
    assert (huge.returncode, "invalid age '9999999999d'" in huge.stderr) == (2, True), huge.stderr


def test_a_repository_that_cannot_be_read_is_unknown(node: Node, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    judged = node.run("status", "--max-age", "26h", RESTIC_REPOSITORY=nowhere)
    assert (judged.returncode, judged.stderr) == (3, "")
    assert judged.stdout.startswith("UNKNOWN: ")
    assert node.run("status", RESTIC_REPOSITORY=nowhere).returncode == 1
    elsewhere = node.run("status", "--max-age", "26h", LIBVIRT_URI="test:///nowhere.xml")
    assert (elsewhere.returncode, elsewhere.stdout.split(":")[0]) == (3, "UNKNOWN")
