"""backup/watch/other_groups.py: guests that interrupted runs of other groups left frozen are thawed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backup.groups import directory_of
from backup.model import Level
from backup.quiesce.freeze_notes import FreezeNotes, Method
from backup.run.cleanup import clean_node, thaw_node
from backup.settings import Settings
from backup.system.stop_request import StopRequest
from backup.watch.node_lock import only_run
from backup.watch.other_groups import no_others, report_apart, thaw_other_groups, with_notes

from ..driver_node import domain_element, node_uri
from ..recorder import Recorder
from ..samples import domain, settings


class Node:
    """A node with the groups a and b, and settings without a group; b was killed with web paused."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o700)
        self.uri = node_uri(directory / "node.xml", domain_element())
        self.none = settings(runtime_dir=str(directory), libvirt_uri=self.uri, freeze_timeout=2)
        self.a, self.b = (self._of(group) for group in "ab")
        self.recorder = Recorder()
        self.notes = FreezeNotes(self.b.runtime_dir)
        Path(self.b.runtime_dir).mkdir(mode=0o700, parents=True)
        (directory / "groups").chmod(0o700)
        self.notes.write(domain(uri=self.uri), Method.PAUSE)

    def _of(self, group: str) -> Settings:
        return replace(self.none, group=group, runtime_dir=directory_of(self.none.runtime_dir, group))

    def find(self) -> Sequence[Settings]:
        return [self.none, self.a, self.b]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


RESUMED = "resumed: an interrupted backup had left the guest paused"


@pytest.mark.parametrize("group", ["none", "a"])
def test_a_run_of_another_group_thaws_what_a_killed_run_left(node: Node, group: str) -> None:
    own = getattr(node, group)
    assert thaw_other_groups(own, node.find, node.recorder, lambda: None) == 0
    assert node.notes.all() == []
    first, last = node.recorder.told(Level.WARNING)
    assert (first, last) == ("thawing guests that a run of group b may have left frozen", RESUMED)


def test_what_an_active_run_quiesces_is_left_to_it(node: Node) -> None:
    with only_run(node.b.runtime_dir):
        assert thaw_other_groups(node.a, node.find, node.recorder, lambda: None) == 0
    assert len(node.notes.all()) == 1
    assert node.recorder.messages == []


def test_a_group_whose_lock_cannot_be_opened_costs_no_run_of_others(node: Node) -> None:
    (Path(node.b.runtime_dir) / "run.lock").mkdir()
    assert thaw_other_groups(node.a, node.find, node.recorder, lambda: None) == 1
    (error,) = node.recorder.told(Level.ERROR)
    assert error.startswith("cannot thaw guests that a run of group b may have left frozen: is a directory")


def test_a_group_whose_settings_are_gone_is_thawed_too(node: Node) -> None:
    assert [one.runtime_dir for one in with_notes(node.a, no_others)] == [node.b.runtime_dir]
    assert thaw_other_groups(node.a, no_others, node.recorder, lambda: None) == 0
    assert node.notes.all() == []


def test_one_with_another_runtime_dir_is_thawed_by_its_settings(node: Node, tmp_path: Path) -> None:
    elsewhere = replace(node.a, runtime_dir=str(tmp_path / "elsewhere/groups/a"))
    assert thaw_other_groups(elsewhere, node.find, node.recorder, lambda: None) == 0
    assert node.notes.all() == []


def test_groups_without_a_common_runtime_dir_are_a_warning_of_each_run(node: Node, tmp_path: Path) -> None:
    elsewhere = replace(node.a, runtime_dir=f"{tmp_path}/elsewhere/groups/a")
    report_apart(node.b, node.find, node.recorder)
    assert node.recorder.messages == []
    report_apart(node.b, lambda: [node.none, elsewhere], node.recorder)
    (warning,) = node.recorder.told(Level.WARNING)
    text = f"group a has another RUNTIME_DIR, {tmp_path}/elsewhere instead of {tmp_path}"
    assert warning.startswith(text)


@pytest.mark.parametrize("group", ["none", "a", "b"])
def test_the_thaw_alone_is_for_the_guests_of_every_group(node: Node, group: str) -> None:
    assert thaw_node(getattr(node, group), node.recorder, StopRequest(), no_others) == 0
    assert node.notes.all() == []
    assert node.recorder.told(Level.WARNING) == [RESUMED]


def test_the_thaw_alone_reports_a_record_of_any_group_that_cannot_be_read(node: Node) -> None:
    (Path(node.b.runtime_dir) / "held/0.json").write_text("{")
    assert thaw_node(node.none, node.recorder, StopRequest()) == 1
    assert node.notes.all() == []


def test_a_cleanup_thaws_the_guests_of_every_group(node: Node) -> None:
    assert clean_node(node.a, node.recorder, StopRequest(), other_groups=node.find) == 0
    assert node.notes.all() == []
    assert oct(Path(node.a.runtime_dir).stat().st_mode & 0o777) == "0o700"
