"""backup/job/snapshots.py: a domain's snapshots are all made at once, and all removed in the end."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Callable, ClassVar

import pytest

from backup.errors import BackupError, Interrupted
from backup.job.leftovers import remove_leftovers
from backup.job.snapshots import DiskSnapshot, DomainSnapshots, gone_afterwards, prepared
from backup.model import Level
from backup.system.concurrency_limit import Slots
from backup.system.stop_request import StopRequest

from ..paper_cluster import PaperCluster, PaperClusters
from ..raising import raises
from ..recorder import Recorder
from ..samples import OTHER_UUID, RUN, UUID, domain, image, rbd_disk
from ..waiting import wait_until

IMAGES = ("vms/a", "vms/b", "ssd/ns/c")
OURS = f"virt-rbd-backup.{UUID}.{RUN}"


NO_LIMIT = Slots("/nowhere", "deletion", 1)  # a directory that does not exist: no limit


@pytest.fixture
def cluster() -> PaperCluster:
    cluster = PaperCluster()
    cluster.snapshots = {name: {"before-upgrade"} for name in IMAGES}
    return cluster


def disk_snapshots(cluster: PaperCluster) -> list[DiskSnapshot]:
    disks = domain().disks
    return [DiskSnapshot(disks[0], image(name), cluster, OURS) for name in IMAGES]


@pytest.fixture(autouse=True)
def short_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backup.job.snapshots.STOP_POLL", 0.01)


def go_on() -> None:
    """No stop is requested."""


def made_for_block(cluster: PaperCluster, recorder: Recorder) -> AbstractContextManager[DomainSnapshots]:
    return gone_afterwards(disk_snapshots(cluster), NO_LIMIT, recorder, "web")


def assert_only_foreign_ones_left(cluster: PaperCluster) -> None:
    assert cluster.snapshots == {name: {"before-upgrade"} for name in IMAGES}


def test_all_snapshots_are_made_at_the_same_time_and_are_gone_after_the_block(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    cluster.together = threading.Barrier(len(IMAGES))
    with made_for_block(cluster, recorder) as snapshots:
        assert_only_foreign_ones_left(cluster)
        snapshots.create(5, go_on)
        assert all(OURS in names for names in cluster.snapshots.values())
    assert_only_foreign_ones_left(cluster)
    assert recorder.messages == []


def test_a_released_snapshot_is_removed_while_the_others_are_read(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    with made_for_block(cluster, recorder) as snapshots:
        snapshots.create(5, go_on)
        snapshots.release(snapshots.snapshots[1])
        wait_until(lambda: OURS not in cluster.snapshots["vms/b"], 5, "it is removed")
        assert [name for name, names in cluster.snapshots.items() if OURS in names] == ["vms/a", "ssd/ns/c"]
    assert_only_foreign_ones_left(cluster)


def test_an_early_removal_that_failed_is_raised_in_the_end(cluster: PaperCluster, recorder: Recorder) -> None:
    cluster.failing = {("remove", "vms/b")}
    message = f"cannot remove snapshot {OURS} of image vms/b: connection timed out"
    with raises(message), made_for_block(cluster, recorder) as snapshots:
        snapshots.create(5, go_on)
        snapshots.release(snapshots.snapshots[1])
    assert [name for name, names in cluster.snapshots.items() if OURS in names] == ["vms/b"]


def test_all_images_are_open_while_their_snapshots_are_made(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    cluster.closed_together = threading.Barrier(len(IMAGES))
    with made_for_block(cluster, recorder) as snapshots:
        with snapshots.images_open():
            assert cluster.open == set(IMAGES)
            snapshots.create(5, go_on)
        assert cluster.open == set()
    assert_only_foreign_ones_left(cluster)


def test_a_full_pool_is_found_before_any_image_is_opened(cluster: PaperCluster, recorder: Recorder) -> None:
    with made_for_block(cluster, recorder) as snapshots, snapshots.images_open():
        assert cluster.asked_for_room == ["vms", "ssd"], "once for all of a pool's images"
    cluster.full = {"vms"}
    with raises("pool vms is full"), made_for_block(cluster, recorder) as snapshots, snapshots.images_open():
        raise AssertionError("the guest would be quiesced for nothing")
    assert cluster.open == set()


def test_a_full_pool_of_the_data_alone_is_found_too(cluster: PaperCluster, recorder: Recorder) -> None:
    """The guest's writes wait in it, and the snapshot, or the pause, would wait for them."""
    cluster.data_pools = {"vms/b": "erasure-coded", "ssd/ns/c": "erasure-coded"}
    disks = [rbd_disk(f"vd{n}", name) for n, name in enumerate(IMAGES)]
    snapshots = prepared(domain(disks=disks), PaperClusters(cluster), RUN)
    with gone_afterwards(snapshots, NO_LIMIT, recorder, "web") as made, made.images_open():
        assert cluster.asked_for_room == ["vms", "erasure-coded", "ssd"], "once for all of a pool's images"
    cluster.full = {"erasure-coded"}
    full = raises("pool erasure-coded is full")
    with full, gone_afterwards(snapshots, NO_LIMIT, recorder, "web") as made, made.images_open():
        raise AssertionError("the guest would be quiesced for nothing")
    assert cluster.open == set()


@pytest.mark.parametrize("failing", IMAGES)
def test_an_image_that_can_t_be_opened_leaves_none_open_and_no_snapshot(
    cluster: PaperCluster, recorder: Recorder, failing: str
) -> None:
    cluster.failing = {("open", failing)}
    message = f"cannot open or close image {failing}: connection timed out"
    with raises(message), made_for_block(cluster, recorder) as snapshots, snapshots.images_open():
        raise AssertionError("not all are open")
    assert cluster.open == set()
    assert_only_foreign_ones_left(cluster)


def test_no_image_is_closed_while_its_snapshot_is_still_being_made(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    cluster.hanging = {"vms/b"}
    open_then: list[bool] = []

    def answer() -> None:
        open_then.append("vms/b" in cluster.open)
        cluster.go_on.set()

    late = raises("the snapshots of vms/b were not made within 0 s")
    with late, made_for_block(cluster, recorder) as snapshots, snapshots.images_open():
        try:
            snapshots.create(0.05, go_on)
        finally:
            threading.Timer(0.1, answer).start()
    assert open_then == [True]
    assert_only_foreign_ones_left(cluster)


@pytest.mark.parametrize("failing", IMAGES)
def test_a_failed_creation_is_an_error_and_all_snapshots_are_removed(
    cluster: PaperCluster, recorder: Recorder, failing: str
) -> None:
    cluster.failing = {("create", failing)}
    message = f"cannot create snapshot {OURS} of image {failing}: connection timed out"
    with raises(message), made_for_block(cluster, recorder) as snapshots:
        snapshots.create(5, go_on)
    assert_only_foreign_ones_left(cluster)


def test_a_slow_snapshot_is_waited_for_within_the_limit(cluster: PaperCluster, recorder: Recorder) -> None:
    cluster.hanging = {"vms/b"}
    calls = iter(range(100))

    def check_stop() -> None:
        if next(calls) == 2:
            cluster.go_on.set()

    with made_for_block(cluster, recorder) as snapshots:
        snapshots.create(5, check_stop)
        assert all(OURS in names for names in cluster.snapshots.values())
    assert_only_foreign_ones_left(cluster)


def test_a_late_snapshot_is_an_error_and_is_removed_once_it_exists(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    cluster.hanging = {"vms/b"}
    message = "the snapshots of vms/b were not made within 0 s"
    with raises(message), made_for_block(cluster, recorder) as snapshots:
        try:
            snapshots.create(0.05, go_on)
        finally:
            threading.Timer(0.05, cluster.go_on.set).start()
    assert cluster.go_on.is_set()
    assert_only_foreign_ones_left(cluster)


def test_a_request_to_stop_is_heard_while_snapshots_are_made(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    cluster.hanging = {"vms/b"}
    stop = StopRequest()
    stop.request(Interrupted("interrupted", 15))
    started = time.monotonic()
    made = made_for_block(cluster, recorder)
    with raises("interrupted", Interrupted), made as snapshots:
        try:
            snapshots.create(60, stop.check)
        finally:
            assert time.monotonic() - started < 20
            cluster.go_on.set()
    assert_only_foreign_ones_left(cluster)


class NoThirdThread(ThreadPoolExecutor):
    """Cannot start a thread for the third call; another thread makes it at once, or later."""

    at_once = True
    asked = 0
    queued: ClassVar[list[Callable[[], object]]] = []

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        type(self).asked += 1
        if self.asked != 3:
            return super().submit(call, *arguments)
        self.queued.append(partial(call, *arguments))
        if self.at_once:
            self.queued.pop()()
        raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_snapshot_that_is_made_although_no_thread_could_be_started_is_removed(
    cluster: PaperCluster, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    monkeypatch.setattr(NoThirdThread, "at_once", at_once)
    monkeypatch.setattr(NoThirdThread, "asked", 0)
    monkeypatch.setattr("backup.job.snapshots.ThreadPoolExecutor", NoThirdThread)
    with pytest.raises(RuntimeError), made_for_block(cluster, recorder) as snapshots:
        snapshots.create(5, go_on)
    for work in NoThirdThread.queued:
        work()
    NoThirdThread.queued.clear()
    assert_only_foreign_ones_left(cluster)


def test_a_snapshot_that_cannot_be_removed_does_not_keep_the_others(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    cluster.failing = {("remove", "vms/a")}
    message = f"cannot remove snapshot {OURS} of image vms/a: connection timed out"
    with raises(message), made_for_block(cluster, recorder) as snapshots:
        snapshots.create(5, go_on)
    assert [name for name, names in cluster.snapshots.items() if OURS in names] == ["vms/a"]


def test_the_block_s_error_survives_a_removal_that_fails_too(
    cluster: PaperCluster, recorder: Recorder
) -> None:
    cluster.failing = {("remove", "vms/a")}
    with raises("restic failed"), made_for_block(cluster, recorder) as snapshots:
        snapshots.create(5, go_on)
        raise BackupError("restic failed")
    assert recorder.told(Level.ERROR) == [
        f"cannot remove snapshot {OURS} of image vms/a: connection timed out"
    ]


def test_only_this_domain_s_own_snapshots_are_leftovers(cluster: PaperCluster, recorder: Recorder) -> None:
    foreign = {"before-upgrade", f"virt-rbd-backup.{OTHER_UUID}.{RUN}", "virt-rbd-backup", f"x{OURS}", UUID}
    cluster.snapshots["vms/a"] = {*foreign, OURS, f"virt-rbd-backup.{UUID}.20230101T000000Z-efgh"}
    remove_leftovers(cluster, image("vms/a"), domain(), recorder)
    assert cluster.snapshots["vms/a"] == foreign
    assert [text.split(" of ")[0] for text in recorder.told(Level.WARNING)] == [
        f"removed leftover snapshot virt-rbd-backup.{UUID}.20230101T000000Z-efgh",
        f"removed leftover snapshot {OURS}",
    ]


def test_an_image_that_is_gone_has_no_leftovers(cluster: PaperCluster, recorder: Recorder) -> None:
    remove_leftovers(cluster, image("vms/gone"), domain(), recorder)
    assert recorder.messages == []
