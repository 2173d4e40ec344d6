"""backup/instant_restore/lock.py: one command at a time carries an instant restore out."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from backup.errors import BackupError
from backup.instant_restore import lock
from backup.instant_restore.given import Given
from backup.instant_restore.lock import locked
from backup.model import Level
from backup.system.stop_request import StopRequest

from ..paper_cluster import PaperCluster
from ..raising import raises
from ..recorder import Recorder
from ..samples import UUID, image, settings

NAME = f"virt-rbd-backup.lock.{UUID}"
HERE = socket.gethostname()


@pytest.fixture
def cluster() -> PaperCluster:
    return PaperCluster()


@pytest.fixture
def about(cluster: PaperCluster, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Given:
    monkeypatch.setattr(lock, "POLL", 0.001)
    values: Any = SimpleNamespace(
        cluster=cluster,
        places={"vda": image("vms/a"), "vdb": image("ssd/ns/b"), "vdc": image("vms/c")},
        domain=SimpleNamespace(uuid=UUID, name="web"),
        settings=settings(lock_duration=60),
        stop=StopRequest(),
        reporter=recorder,
        report=lambda level, text: recorder.message(level, "web", text),
    )
    return cast(Given, values)


def taken_by(cluster: PaperCluster, owner: str) -> None:
    cluster.locks[NAME] = cluster.tokens[NAME] = owner


def test_it_is_held_in_every_place_during_the_block_and_gone_after_it(
    cluster: PaperCluster, about: Given
) -> None:
    with locked(about):
        assert set(cluster.locks) == {NAME, f"ssd/ns/{NAME}"}
        assert {owner.split(".")[0] for owner in cluster.locks.values()} == {"restore"}
    assert cluster.locks == {}


def test_a_second_one_on_this_node_is_refused_at_once(cluster: PaperCluster, about: Given) -> None:
    taken_by(cluster, f"restore.{HERE}.{os.getpid()}.0123abcd")
    with raises(f"the domain is being restored: instant restore on {HERE}"), locked(about):
        raise AssertionError("the block must not begin")


@pytest.mark.parametrize(
    "owner",
    [f"restore.{HERE}.{1 << 30}.0123abcd", "restore.node2.77.0123abcd", "cleanup.node2.77.0123abcd"],
    ids=["killed here", "on another node", "a cleanup"],
)
def test_the_lock_of_a_process_that_may_have_ended_is_waited_for(
    cluster: PaperCluster, about: Given, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    taken_by(cluster, owner)
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        cluster.locks.clear()  # it has expired

    monkeypatch.setattr("backup.instant_restore.lock.time.sleep", wait)
    with locked(about):
        assert len(waited) == 1
    (told,) = recorder.told(Level.INFO)
    assert told.startswith("waiting for the domain's lock: ")


def test_one_on_another_node_that_renews_its_lock_is_not_disturbed(
    cluster: PaperCluster, about: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_by(cluster, "restore.node2.77.0123abcd")
    monkeypatch.setattr(lock, "DURATION", 0)
    monkeypatch.setattr(lock, "MARGIN", 0.01)
    with raises("the domain is being restored: instant restore on node2"), locked(about):
        raise AssertionError("the block must not begin")


def test_a_backup_that_is_active_is_not_waited_for(cluster: PaperCluster, about: Given) -> None:
    taken_by(cluster, "node2.77.0123abcd")
    with pytest.raises(BackupError, match="another run is backing up this domain"), locked(about):
        raise AssertionError("the block must not begin")
