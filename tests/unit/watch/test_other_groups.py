"""backup/watch/other_groups.py: guests that interrupted runs of other groups left frozen are thawed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backup.errors import BackupError
from backup.groups import directory_of
from backup.model import Level
from backup.quiesce.freeze_notes import FreezeNotes, Method
from backup.run.cleanup import clean_node, thaw_node
from backup.settings import Settings
from backup.system.stop_request import StopRequest
from backup.watch import other_groups
from backup.watch.node_lock import only_run
from backup.watch.other_groups import no_others, thaw_other_groups, with_notes

from ..driver_node import domain_element, node_uri
from ..raising import raises
from ..recorder import Recorder
from ..samples import OTHER_UUID, domain, settings


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
    thaw_other_groups(own, node.find, node.recorder, lambda: None)
    assert node.notes.all() == []
    first, last = node.recorder.told(Level.WARNING)
    assert (first, last) == ("thawing guests that a run of group b may have left frozen", RESUMED)


def test_what_an_active_run_quiesces_is_left_to_it(node: Node) -> None:
    with only_run(node.b.runtime_dir):
        thaw_other_groups(node.a, node.find, node.recorder, lambda: None)
    assert len(node.notes.all()) == 1
    assert node.recorder.messages == []


def test_a_group_whose_lock_cannot_be_opened_costs_no_run_of_others(node: Node) -> None:
    (Path(node.b.runtime_dir) / "run.lock").mkdir()
    thaw_other_groups(node.a, node.find, node.recorder, lambda: None)
    (error,) = node.recorder.told(Level.ERROR)
    assert error.startswith("cannot thaw guests that a run of group b may have left frozen: is a directory")


def test_a_group_whose_settings_are_gone_is_thawed_too(node: Node) -> None:
    assert [one.runtime_dir for one in with_notes(node.a, no_others)] == [node.b.runtime_dir]
    thaw_other_groups(node.a, no_others, node.recorder, lambda: None)
    assert node.notes.all() == []


def not_asked() -> Sequence[Settings]:
    raise AssertionError("no settings file of another group may be executed")


def test_where_no_other_group_has_records_no_other_settings_are_executed(node: Node) -> None:
    thaw_other_groups(node.b, not_asked, node.recorder, lambda: None)
    assert thaw_node(node.b, node.recorder, StopRequest(), not_asked) == 0
    assert node.notes.all() == []
    assert clean_node(node.a, node.recorder, StopRequest(), other_groups=not_asked) == 0


def test_settings_that_hang_keep_no_guest_frozen(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_groups, "FIND_LIMIT", 0.2)
    own, found, asked = FreezeNotes(node.a.runtime_dir), threading.Event(), []
    Path(node.a.runtime_dir).mkdir(mode=0o700)
    own.write(domain(uri=node.uri), Method.PAUSE)

    def hang() -> Sequence[Settings]:
        asked.append(own.all())
        found.wait(60)
        return ()

    try:
        assert thaw_node(node.a, node.recorder, StopRequest(), hang) == 0
    finally:
        found.set()
    assert (own.all(), node.notes.all()) == ([], [])
    assert asked == [[]], "once, after our own were thawed"


def test_while_settings_hang_a_request_to_stop_is_heard(node: Node) -> None:
    stop, found = StopRequest(), threading.Event()
    stop.request(BackupError("enough"))

    def hang() -> Sequence[Settings]:
        found.wait(60)
        return ()

    with raises("enough"):
        thaw_other_groups(node.a, hang, node.recorder, stop.check)
    found.set()


def test_a_guest_of_another_group_that_cannot_be_thawed_costs_a_run_neither_time_nor_success(
    node: Node,
) -> None:
    node.notes.write(domain("db", OTHER_UUID, uri="test:///nowhere.xml"), Method.PAUSE)
    node.none = replace(node.none, freeze_timeout=60)
    node.a, node.b = (replace(one, freeze_timeout=60) for one in (node.a, node.b))
    began = time.monotonic()
    assert clean_node(node.a, node.recorder, StopRequest(), other_groups=node.find) == 0
    assert time.monotonic() - began < 20
    assert len(node.notes.all()) == 1
    assert any("cannot connect" in text for text in node.recorder.told(Level.ERROR))


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
