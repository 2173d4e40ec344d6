"""backup/status/all_groups.py: the domains of several groups in one table, and in one check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Callable

import pytest

from backup.errors import BackupError, ConfigError, Interrupted
from backup.model import Level
from backup.status.all_groups import AllGroups
from backup.status.max_age import judge
from backup.status.status import StatusSearch
from backup.stored import StoredPoint
from backup.terminal.status_text import status_json, status_table

from ..disk_elements import rbd
from ..driver_node import domain_element, node_uri
from ..jobs_on_paper import NoOutput
from ..raising import raises
from ..recorder import Recorder
from ..samples import OTHER_UUID, TAKEN, UUID, held_point, settings

GONE = "5f5d1c04-6a6d-4a10-9c3b-3a5f6c1d2e09"


@dataclass
class Points(NoOutput):
    """Holds these restore points, or an error."""

    points: Sequence[StoredPoint] = ()
    error: BackupError | None = None

    def configuration_errors(self) -> Sequence[BackupError]:
        return ()

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        if self.error:
            raise self.error
        return self.points


class Node:
    """The group a saves web, b saves db, each into a repository of its own."""

    def __init__(self, directory: Path) -> None:
        elements = [domain_element("web", UUID, rbd("vms/a")), domain_element("db", OTHER_UUID, rbd("vms/b"))]
        self.uri = node_uri(directory / "node.xml", *elements)
        self.recorder = Recorder()
        self.web = replace(held_point(uuid=UUID, manifest_id="m"), domain="web", taken=TAKEN)
        self.db = replace(held_point(uuid=OTHER_UUID, manifest_id="m"), domain="db", taken=TAKEN)

    def groups(self, a: Points, b: Points) -> AllGroups:
        searches = [
            StatusSearch(
                settings(libvirt_uri=self.uri, include_domains=[name], group=group),
                *(output, self.recorder, lambda: None, TAKEN),
            )
            for name, group, output in (("web", "a", a), ("db", "b", b))
        ]
        return AllGroups(searches, self.recorder)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_all_domains_are_shown_with_their_groups(node: Node) -> None:
    status = node.groups(Points([node.web]), Points([node.db])).status((), ask_clusters=False)
    assert [(one.group, one.name) for one in status.domains] == [("a", "web"), ("b", "db")]
    head, *rows = status_table(status).splitlines()
    assert head.split()[:2] == ["group", "domain"]
    assert [row.split()[:2] for row in rows] == [["a", "web"], ["b", "db"]]
    assert [one["group"] for one in status_json(status)["domains"]] == ["a", "b"]
    assert "missing" not in status_json(status)


def test_groups_with_the_same_repository_show_each_domain_once(node: Node) -> None:
    gone = replace(held_point(uuid=GONE, manifest_id="m"), domain="gone")
    both = Points([node.web, node.db, gone])
    status = node.groups(both, both).status((), ask_clusters=False)
    assert [(one.group, one.name) for one in status.domains] == [("a", "gone"), ("a", "web"), ("b", "db")]


def test_names_may_be_of_domains_of_any_group(node: Node) -> None:
    groups = node.groups(Points([node.web]), Points([node.db]))
    assert [one.name for one in groups.status(["db"], ask_clusters=False).domains] == ["db"]
    assert len(groups.status(["db", UUID], ask_clusters=False).domains) == 2
    with raises("this node backs up no domain 'bd', and there is no restore point of one", ConfigError):
        groups.status(["bd"], ask_clusters=False)


def test_a_repository_that_cannot_be_read_costs_the_domains_of_its_group(node: Node) -> None:
    groups = node.groups(Points([node.web]), Points(error=BackupError("no route to host")))
    status = groups.status((), ask_clusters=False)
    assert [one.name for one in status.domains] == ["web"]
    assert status.missing == ["b"]
    assert node.recorder.told(Level.ERROR) == ["group b: no route to host"]
    none = node.groups(*[Points(error=BackupError("no route to host"))] * 2)
    with raises("no route to host"):
        none.status((), ask_clusters=False)


def test_an_old_restore_point_of_any_group_is_critical_and_an_unknown_group_is_unknown(node: Node) -> None:
    old = replace(node.db, taken=TAKEN - timedelta(days=3))
    late = judge(node.groups(Points([node.web]), Points([old])), (), timedelta(hours=26))
    assert (late.exit_code, late.text) == (
        2,
        "CRITICAL: 1 of 2 domains have no restore point of the last 26 h: db of group b (3 d)",
    )
    lost = judge(node.groups(Points([node.web]), Points(error=BackupError("x"))), (), timedelta(hours=26))
    assert (lost.exit_code, lost.text) == (
        3,
        "UNKNOWN: no answer for b; 1 domains of other groups have a restore point of the last 26 h",
    )
    groups = node.groups(Points([node.web]), Points([node.db]))
    unread = judge(replace(groups, unread=["c"]), (), timedelta(hours=26))
    assert unread.exit_code == 3, "its domains are not known to be saved"
    good = judge(node.groups(Points([node.web]), Points([node.db])), (), timedelta(hours=26))
    assert good.exit_code == 0


def test_a_request_to_stop_is_no_failure_of_a_group(node: Node) -> None:
    with pytest.raises(Interrupted):
        node.groups(Points(error=Interrupted("stopped by SIGTERM", 15)), Points()).status(())
