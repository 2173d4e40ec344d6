"""backup/run/check_groups.py: whether the groups of a node fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backup.errors import BackupError, Interrupted
from backup.groups import directory_of
from backup.model import Finding
from backup.run.check_groups import examine_groups
from backup.settings import Settings

from ..disk_elements import rbd
from ..driver_node import domain_element, node_uri
from ..samples import OTHER_UUID, UUID, settings


class Node:
    """Two domains, web and db."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        elements = [domain_element("web", UUID, rbd("vms/a")), domain_element("db", OTHER_UUID, rbd("vms/b"))]
        self.uri = node_uri(directory / "node.xml", *elements)

    def group(self, name: str, *domains: str, **constants: Any) -> Settings:
        """Give the settings of a group of these domains; "" for those of none."""
        return replace(
            settings(libvirt_uri=self.uri, include_domains=domains),
            **{
                "group": name,
                "runtime_dir": directory_of(str(self.directory), name),
                "state_dir": f"/state/{name}",
                **constants,
            },
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def warnings(groups: Sequence[Settings]) -> list[str]:
    return [found.subject for found in examine_groups(groups, {}) if found.warning]


def problems(groups: Sequence[Settings]) -> list[Finding]:
    return [found for found in examine_groups(groups, {}) if found.problem]


def test_groups_that_fit_together_are_listed(node: Node) -> None:
    groups = [node.group("a", "web"), node.group("b", "d*"), node.group("c")]
    found = list(examine_groups(groups, {}))
    assert [one.subject.split(" (")[0] for one in found] == [
        "group a: 1 domains to back up",
        "group b: 1 domains to back up",
        "group c: 0 domains to back up",
    ]
    assert found[0].subject.endswith("(`main.py --group a check` checks it)")
    assert not any(one.problem or one.warning for one in found)


def test_a_domain_of_two_groups_is_a_warning(node: Node) -> None:
    (warning,) = warnings([node.group("", "*"), node.group("b", "db")])
    assert warning == (
        "domain db is selected by the settings without a group and group b: it is backed up by each of them"
        " (INCLUDE_DOMAINS, EXCLUDE_DOMAINS)"
    )


PLACES = ("restic_repository", "rbd_output_pool", "directory_output")


@pytest.mark.parametrize(
    ("outputs", "repositories", "alternate"),
    [
        (("restic_incremental", "restic_incremental"), ("/x", "/y"), True),
        (("restic_incremental", "restic_incremental"), ("/x", "/x"), False),
        (("restic_incremental", "restic"), ("/x", "/y"), False),
        (("restic_incremental", "rbd"), ("/x", "/x"), True),
        (("rbd", "rbd"), ("x", "y"), True),
        (("rbd", "rbd"), ("x", "x"), False),
        (("rbd", "directory"), ("/x", "/x"), True),
        (("directory", "directory"), ("/x", "/y"), True),
        (("directory", "directory"), ("/x", "/x"), False),
    ],
)
def test_it_says_where_two_incremental_groups_cost_full_reads(
    node: Node, outputs: Sequence[str], repositories: Sequence[str], alternate: bool
) -> None:
    a, b = (
        node.group(name, "web", output=output, **dict.fromkeys(PLACES, repository))
        for name, output, repository in zip("ab", outputs, repositories)
    )
    (warning,) = warnings([a, b])
    assert ("each backup is a full read" in warning) is alternate


@pytest.mark.parametrize("constant", ["state_dir", "report_file", "metrics_file"])
def test_two_groups_that_write_to_the_same_path_are_a_problem(node: Node, constant: str) -> None:
    same = {constant: "/srv/x.prom"}
    (found,) = problems([node.group("a", **same), node.group("b", **same)])
    assert found.subject == constant.upper()
    assert found.problem
    assert found.problem.message == "group a and group b write to /srv/x.prom"


@pytest.mark.parametrize("other", ["{}/own/", "{}/./own", "{}/link"])
def test_a_path_is_the_same_however_it_is_written(node: Node, tmp_path: Path, other: str) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "link").symlink_to(own)
    groups = [node.group("a", state_dir=str(own)), node.group("b", state_dir=other.format(tmp_path))]
    (found,) = problems(groups)
    assert found.problem
    assert found.problem.message == f"group a and group b write to {own}"


def test_groups_without_a_common_runtime_dir_are_a_problem(node: Node) -> None:
    other = node.group("b", runtime_dir="/run/other/groups/b")
    (found,) = problems([node.group("a"), other])
    assert (found.subject, bool(found.problem)) == ("RUNTIME_DIR", True)


def test_a_group_that_cannot_be_read_or_reached_is_a_problem_and_hides_no_other(node: Node) -> None:
    lost = node.group("a", libvirt_uri="nonsense:///x")
    wrong = BackupError("/etc/x.py, line 3: invalid setting (SyntaxError)")
    found = list(examine_groups([lost, node.group("b", "web")], {"c": [wrong]}))
    assert [bool(one.problem) for one in found] == [True, True, False]
    assert [one.subject for one in found[:2]] == ["group c", "group a"]
    assert found[2].subject.startswith("group b: 1 domains")


def test_a_request_to_stop_ends_it(node: Node) -> None:
    def stop() -> None:
        raise Interrupted("stopped by SIGTERM", 15)

    with pytest.raises(Interrupted):
        list(examine_groups([node.group("a", "web")], {}, stop))
