"""backup/job/domain_job.py: the job of a domain of which another group saves other images."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from backup.job.job_order import JobOrder
from backup.job.quiesced_snapshots import QuiescedSnapshots
from backup.job_result import Status
from backup.model import Consistency, State
from backup.quiesce import other_group
from backup.quiesce.freeze_notes import FreezeNotes, Method, Note

from ..paper_node import PaperNode
from ..samples import UUID, domain, settings


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperNode:
    """Give a node whose jobs are of the group a."""
    directory = tmp_path / "groups/a"
    directory.mkdir(parents=True)
    return PaperNode(directory, monkeypatch, domain())


@pytest.fixture
def theirs(tmp_path: Path) -> FreezeNotes:
    """Give the notes of runs without a group."""
    return FreezeNotes(str(tmp_path))


def test_a_pause_by_another_group_is_waited_for_and_not_taken_for_an_admin_s(
    node: PaperNode, theirs: FreezeNotes
) -> None:
    theirs.write(domain(), Method.PAUSE)
    node.hypervisor.listed = domain(state=State.PAUSED)

    def resume() -> None:
        assert node.hypervisor.asked == [], "it is theirs"
        node.hypervisor.listed = replace(node.hypervisor.listed, state=State.RUNNING)
        theirs.remove(UUID)

    timer = threading.Timer(0.5, resume)
    timer.start()
    result = node.back_up(group="a")
    timer.join()
    assert (result.status, result.consistency) == (Status.SAVED, Consistency.FILESYSTEM)


def test_a_guest_that_another_group_has_frozen_for_good_is_saved_as_it_is(
    node: PaperNode, theirs: FreezeNotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_group, "MARGIN", 0.1)
    monkeypatch.setattr(Note, "owned", False)  # its run was killed
    theirs.write(domain(), Method.FREEZE)
    result = node.back_up(group="a", freeze_timeout=0)
    assert (result.status, result.consistency) == (Status.SAVED, Consistency.CRASH)
    assert "freeze" not in node.hypervisor.asked
    assert "pause" not in node.hypervisor.asked
    assert theirs.exists(UUID)


def test_a_guest_that_a_live_run_of_another_group_has_frozen_for_too_long_is_retried(
    node: PaperNode, theirs: FreezeNotes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_group, "MARGIN", 0.1)
    theirs.write(domain(), Method.FREEZE)
    result = node.back_up(group="a", freeze_timeout=0)
    assert (result.status, result.transient, result.freeze_failed) == (Status.FAILED, True, False)
    assert node.hypervisor.asked == []


def test_the_limit_of_the_snapshots_counts_a_freeze_of_another_group(
    node: PaperNode, theirs: FreezeNotes
) -> None:
    own = settings(runtime_dir=str(node.directory), group="a")
    taker = QuiescedSnapshots(JobOrder("r", "web", UUID), own, node.recorder, node.stop, lambda: None)
    alone = taker.limit(domain())
    theirs.write(domain(), Method.FREEZE, seconds=500)
    assert alone + 490 < taker.limit(domain()) <= alone + 500


def test_deletions_of_snapshots_are_limited_for_all_groups_together(node: PaperNode, tmp_path: Path) -> None:
    assert node.back_up(group="a").status is Status.SAVED
    assert [path.name for path in tmp_path.rglob("deletion.*")] == ["deletion.0.lock"]
    assert (tmp_path / "deletion.0.lock").exists()
