"""run/incomplete_points.py: the points of failed and killed runs are removed, those of active runs stay."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Callable

import pytest

from backup.errors import BackupError, Interrupted
from backup.hypervisor.connections import Hypervisors
from backup.model import Domain, Image, Level
from backup.run import incomplete_points
from backup.run.incomplete_points import discard_of_dead, discard_own, report_dead_locks
from backup.stored import PointId, StoredPoint
from backup.system.stop_request import StopRequest

from ..jobs_on_paper import NoOutput
from ..paper_cluster import PaperCluster, PaperClusters
from ..paper_node import LOCK
from ..recorder import Recorder
from ..samples import FSID, OTHER_UUID, RUN, URI, UUID, domain, held_point, settings

OWN = PointId(RUN, UUID)
DEAD = PointId("20200101T000000Z-dead", UUID)
ELSEWHERE = PointId("20200101T000000Z-dead", "of a domain that this node does not know")


class Left(NoOutput):
    """Has incomplete points. `cluster` is where the domain must be locked."""

    def __init__(self, *points: PointId) -> None:
        self.points = list(points)
        self.refuses = False
        self.cluster: PaperCluster | None = None

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        return [held_point(point.run, point.uuid) for point in self.points]

    def discard(
        self,
        points: Collection[PointId],
        wait_if_busy: bool,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        assert self.cluster is None or LOCK in self.cluster.locks, "without the domain's lock"
        if self.refuses:
            raise BackupError("the repository takes additions alone")
        self.points = [point for point in self.points if point not in points]


class OneHypervisor(Hypervisors):
    """One libvirt, by its URI alone."""

    def __init__(self) -> None:
        self.uri = URI
        self.secret = str  # of any address

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter([self])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> PaperCluster:
    cluster = PaperCluster()
    monkeypatch.setattr(incomplete_points, "Clusters", lambda *_: PaperClusters(cluster))
    return cluster


def discard(output: Left, recorder: Recorder, *domains: Domain) -> None:
    points = [held_point(point.run, point.uuid) for point in (DEAD, ELSEWHERE)]
    discard_of_dead(points, domains, OneHypervisor(), output, settings(), recorder, StopRequest())


def test_a_point_without_a_manifest_is_incomplete() -> None:
    points = [held_point(), held_point(DEAD.run, manifest_id="manifest")]
    assert [point.id for point in incomplete_points.incomplete(points)] == [OWN]


def test_a_run_discards_only_its_own() -> None:
    output = Left(DEAD, OWN)
    discard_own(RUN, set(), output, Recorder(), wait_if_busy=False)
    assert output.points == [DEAD]


class Complete(Left):
    """Has complete points, too."""

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        return [replace(one, manifest_id="manifest") for one in super().restore_points()]

    def withdraw(self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None) -> None:
        self.points = [point for point in self.points if point not in points]


def test_a_run_withdraws_what_it_failed_to_save_although_it_looks_complete() -> None:
    other = PointId(RUN, OTHER_UUID)
    earlier, gone = PointId(DEAD.run, OTHER_UUID), PointId(DEAD.run, UUID, 2)
    output, failed = Complete(DEAD, OWN, earlier, other), {earlier, gone, OWN}
    discard_own(RUN, failed, output, Recorder(), wait_if_busy=False)
    assert output.points == [DEAD, other]
    assert failed == set()


class Busy(Complete):
    """Has complete points, which it cannot remove as it is locked."""

    def withdraw(self, points: Collection[PointId], check_stop: Callable[[], None] = lambda: None) -> None:
        raise BackupError("locked by a prune")


def test_what_failed_and_cannot_be_withdrawn_is_an_error_and_tried_again_later() -> None:
    output, recorder, failed = Busy(OWN), Recorder(), {OWN}
    discard_own(RUN, failed, output, recorder, wait_if_busy=False)
    (text,) = recorder.told(Level.ERROR)
    assert "are still in the repository, and look complete: locked by a prune" in text
    assert failed == {OWN}


class Mixed(Complete):
    """Has a complete point, beside an incomplete one that it cannot discard."""

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        first, *others = super().restore_points()
        return [first, *(replace(one, manifest_id="") for one in others)]


def test_what_cannot_be_discarded_does_not_keep_what_failed_from_being_withdrawn() -> None:
    output, recorder = Mixed(OWN, PointId(RUN, OTHER_UUID)), Recorder()
    output.refuses = True
    discard_own(RUN, {OWN}, output, recorder, wait_if_busy=False)
    assert output.points == [PointId(RUN, OTHER_UUID)]
    (text,) = recorder.told(Level.WARNING)
    assert "images of incomplete restore points" in text


class Unlisted(Left):
    """Cannot be listed."""

    def restore_points(self, check_stop: Callable[[], None] = lambda: None) -> Sequence[StoredPoint]:
        raise BackupError("the repository does not answer")


@pytest.mark.parametrize("failed", [set(), {OWN}])
def test_without_a_list_what_may_look_complete_is_reported_too(failed: set[PointId]) -> None:
    recorder = Recorder()
    discard_own(RUN, failed, Unlisted(), recorder, wait_if_busy=False)
    (text,) = recorder.told(Level.WARNING)
    assert f"images of incomplete restore points (run={RUN}) may still be in the repository" in text
    assert ("restore points that failed, which look complete" in text) == bool(failed)
    assert text.endswith(": the repository does not answer")


def test_locks_of_dead_processes_that_cannot_be_removed_are_reported() -> None:
    recorder = Recorder()
    removed: Future[None] = Future()
    removed.set_result(None)
    report_dead_locks(removed, recorder)
    assert recorder.messages == []
    refused: Future[None] = Future()
    refused.set_exception(BackupError("the repository takes additions alone"))
    report_dead_locks(refused, recorder)
    (text,) = recorder.told(Level.WARNING)
    assert text.endswith("the repository takes additions alone")


def test_points_that_cannot_be_discarded_are_reported() -> None:
    output, recorder = Left(OWN), Recorder()
    output.refuses = True
    discard_own(RUN, set(), output, recorder, wait_if_busy=False)
    (text,) = recorder.told(Level.WARNING)
    assert RUN in text
    assert "the repository takes additions alone" in text


def test_incomplete_points_of_dead_runs_are_removed_under_the_domain_s_lock(cluster: PaperCluster) -> None:
    output, recorder = Left(DEAD, ELSEWHERE), Recorder()
    output.cluster = cluster
    discard(output, recorder, domain(), domain(uuid=OTHER_UUID))
    assert output.points == [ELSEWHERE]
    assert cluster.locks == {}
    (text,) = recorder.told(Level.WARNING)
    assert (
        text
        == f"removed an incomplete restore point of an interrupted run from the repository: run={DEAD.run}"
    )


def test_points_of_a_run_that_may_be_alive_stay(cluster: PaperCluster) -> None:
    cluster.locks[LOCK] = "another node"
    output, recorder = Left(DEAD), Recorder()
    discard(output, recorder, domain())
    assert output.points == [DEAD]
    assert cluster.locks == {LOCK: "another node"}
    assert recorder.messages == []


def test_points_saved_under_a_lock_in_another_place_are_removed_under_that_lock(
    cluster: PaperCluster,
) -> None:
    """Another node's definition of the domain has its images elsewhere."""
    output, recorder = Left(DEAD), Recorder()
    cluster.pools = {"vms", "fast"}
    taken: list[Image] = []
    lock = cluster.lock

    def recorded(image: Image, *rest: Any) -> None:
        taken.append(image)
        lock(image, *rest)

    cluster.lock = recorded  # type: ignore[method-assign, assignment]
    discard_dead(output, recorder, f"{FSID}/fast/space", f"{FSID}/gone/")
    assert output.points == []
    assert [(image.pool, image.namespace) for image in taken] == [("fast", "space")]
    assert cluster.locks == {}


@pytest.mark.parametrize("place", ["another-cluster/vms/", "none of ours", ""])
def test_points_of_a_run_in_another_cluster_stay(cluster: PaperCluster, place: str) -> None:
    output, recorder = Left(DEAD), Recorder()
    discard_dead(output, recorder, place)
    assert (output.points, cluster.claims, recorder.messages) == ([DEAD], [], [])


def discard_dead(output: Left, recorder: Recorder, *places: str) -> None:
    point = replace(held_point(DEAD.run, DEAD.uuid), locks=places)
    discard_of_dead([point], [domain()], OneHypervisor(), output, settings(), recorder, StopRequest())


def test_a_refusal_is_reported_for_its_domain_and_the_lock_released(cluster: PaperCluster) -> None:
    output, recorder = Left(DEAD), Recorder()
    output.refuses = True
    discard(output, recorder, domain())
    assert cluster.locks == {}
    (text,) = recorder.told(Level.WARNING)
    assert DEAD.run in text


def test_a_request_to_stop_leaves_the_rest_to_the_next_run(cluster: PaperCluster) -> None:
    output, recorder, stop = Left(DEAD), Recorder(), StopRequest()
    stop.request(Interrupted("interrupted", 15))
    points = [held_point(DEAD.run, DEAD.uuid)]
    discard_of_dead(points, [domain()], OneHypervisor(), output, settings(), recorder, stop)
    assert (output.points, cluster.claims, recorder.messages) == ([DEAD], [], [])


def test_a_lock_that_is_lost_before_the_removal_prevents_it(
    cluster: PaperCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, recorder = Left(DEAD), Recorder()
    monkeypatch.setattr(StopRequest, "lease_until", lambda self, *_: self.request(BackupError("lost")))
    discard(output, recorder, domain())
    assert (output.points, cluster.locks) == ([DEAD], {})
    (text,) = recorder.told(Level.WARNING)
    assert text.endswith("may still be in the repository: lost")
