"""main.py with several libvirts, one of which is out of reach: what is left works, and the rest is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .program_node import Done, Node

ERROR = "error: cannot connect to libvirt at nonsense:///system: "
LINES = ("list --json", "check", "backup --dry-run", "backup")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def answers(node: Node) -> dict[str, Done]:
    """What main.py answers, all asked at the same time."""
    return node.run_each(*LINES, LIBVIRT_URI=["nonsense:///system", node.uri], EXCLUDE_IMAGES=["*"])


def test_list_shows_the_domains_of_those_that_answer_and_ends_as_a_failure(
    answers: dict[str, Done], node: Node
) -> None:
    done = answers["list --json"]
    domains = json.loads(done.stdout)
    assert {(one["name"], one["libvirt"]) for one in domains} == {("web", node.uri), ("plain", node.uri)}
    assert done.returncode == 3
    assert done.stderr.startswith(ERROR)
    assert "hint: check that libvirtd is running" in done.stderr


def test_a_backup_goes_on_with_the_others_and_tells_what_it_could_not_look_at(
    answers: dict[str, Done], node: Node
) -> None:
    done = answers["backup"]
    assert done.returncode == 3
    assert done.stderr.startswith(ERROR)
    error = ERROR[len("error: ") :]
    assert error in done.stdout
    assert ": nothing to do in " in done.stdout
    report = json.loads(Path(node.report_file).read_text())
    assert (report["exit_code"], len(report["errors"])) == (3, 1)
    assert report["errors"][0].startswith(error)


def test_a_dry_run_tells_too_what_it_could_not_look_at(answers: dict[str, Done]) -> None:
    done = answers["backup --dry-run"]
    assert "web" in done.stdout
    assert done.returncode == 3
    assert ERROR in done.stderr


def test_check_counts_it_as_a_problem_and_looks_at_the_others(answers: dict[str, Done], node: Node) -> None:
    done = answers["check"]
    assert done.returncode == 1
    assert "PROBLEM  libvirt: cannot connect to libvirt at nonsense:///system: " in done.stdout
    assert f"ok       libvirt at {node.uri}: 0 domains to back up\n" in done.stdout
