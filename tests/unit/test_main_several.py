"""main.py with several libvirts, one of them unreachable: the others work, and the failure is reported."""

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
    """The results of these commands, all run at the same time."""
    return node.run_each(*LINES, LIBVIRT_URI=["nonsense:///system", node.uri], EXCLUDE_IMAGES=["*"])


def test_list_shows_the_domains_of_the_other_libvirts_and_fails(answers: dict[str, Done], node: Node) -> None:
    done = answers["list --json"]
    domains = json.loads(done.stdout)
    assert {(one["name"], one["libvirt"]) for one in domains} == {("web", node.uri), ("plain", node.uri)}
    assert done.returncode == 3
    assert done.stderr.startswith(ERROR)
    assert "hint: check that libvirtd is running" in done.stderr


def test_a_backup_continues_with_the_others_and_reports_the_unreachable_libvirt(
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


def test_a_dry_run_reports_the_unreachable_libvirt_too(answers: dict[str, Done]) -> None:
    done = answers["backup --dry-run"]
    assert "web" in done.stdout
    assert done.returncode == 3
    assert ERROR in done.stderr


def test_check_counts_it_as_a_problem_and_checks_the_others(answers: dict[str, Done], node: Node) -> None:
    done = answers["check"]
    assert done.returncode == 1
    assert "PROBLEM  libvirt: cannot connect to libvirt at nonsense:///system: " in done.stdout
    assert f"ok       libvirt at {node.uri}: 0 domains to back up\n" in done.stdout
