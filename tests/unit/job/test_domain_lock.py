"""backup/job/domain_lock.py: two nodes never back up the same domain at once."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

from backup.ceph.cluster import Claim
from backup.ceph.errors import HeldByCleanup, HeldByDead, HeldByRestore, LockHeld
from backup.ceph.retry import CephRetry
from backup.errors import BackupError, Interrupted, Skipped, TransientError
from backup.job.domain_lock import CLEANUP, RESTORE, DomainLock, lock_at, lock_of
from backup.model import ClusterAddress, Level, Override
from backup.system.stop_request import StopRequest

from ..paper_cluster import PaperCluster, PaperClusters
from ..raising import raises
from ..recorder import Recorder
from ..samples import FSID, UUID, domain, rbd_disk
from ..waiting import wait_until, within

NAME = f"virt-rbd-backup.lock.{UUID}"
OTHER = ClusterAddress(("ceph2",))


@pytest.fixture
def cluster() -> PaperCluster:
    return PaperCluster()


@pytest.fixture
def stop() -> StopRequest:
    return StopRequest()


def lock(cluster: PaperCluster, duration: float = 3600) -> DomainLock:
    seconds: int = duration  # type: ignore[assignment]  # below a second, for the test's sake
    return lock_of(domain(), PaperClusters(cluster), seconds)


def locked(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder, duration: float = 3600
) -> AbstractContextManager[None]:
    return lock(cluster, duration).locked(stop, recorder, "web")


def test_the_lock_is_in_every_place_where_the_domain_has_an_image(cluster: PaperCluster) -> None:
    disks = (
        *(rbd_disk("vda", "vms/web-root"), rbd_disk("vdb", "ssd/ns/web"), rbd_disk("vdc", "vms/web-data")),
        *(rbd_disk("vdd", "hdd/web", address=OTHER), rbd_disk("vde", "scratch/web")),
    )
    excluding = domain(disks=disks, override=Override(exclude=("vde",)))
    clusters = PaperClusters(cluster, {OTHER: PaperCluster("0-fsid")})
    assert lock_of(excluding, clusters, 60).places == ("0-fsid/hdd/", f"{FSID}/ssd/ns", f"{FSID}/vms/")
    with raises("the domain has no RBD image"):
        lock_of(replace(domain(), disks=()), PaperClusters(cluster), 60)


def test_a_renewal_that_hangs_for_longer_than_the_lock_lasts_ends_the_job(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with locked(cluster, stop, recorder, duration=0.05):
        cluster.claim_hangs.set()
        time.sleep(0.06)  # what is tested is the time itself
        with raises("the domain's lock could not be renewed in time"):
            stop.check()
        cluster.go_on.set()


def test_the_lock_is_held_during_the_block_and_gone_after_it(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    assert not lock(cluster).exists()
    with locked(cluster, stop, recorder):
        assert set(cluster.locks) == {NAME}
        assert lock(cluster).exists()
    assert cluster.locks == {}


def test_a_second_run_is_refused_and_leaves_the_first_one_its_lock(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with locked(cluster, stop, recorder):
        before = dict(cluster.locks)
        message = "another run is backing up this domain, maybe on another node"
        with raises(message, LockHeld) as caught, locked(cluster, stop, recorder):
            raise AssertionError("the block must not begin")
        assert NAME in caught.value.hint
        assert cluster.locks == before


def test_a_cleanup_that_has_the_lock_is_no_run(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    cleaning = lock_of(domain(), PaperClusters(cluster), 60, CLEANUP)
    message = "a cleanup, maybe on another node, is removing leftovers of this domain"
    with (
        cleaning.locked(stop, recorder, "web"),
        raises(message, HeldByCleanup),
        locked(cluster, stop, recorder),
    ):
        raise AssertionError("the block must not begin")


@pytest.mark.parametrize(("process", "ended"), [(os.getpid(), False), (1 << 30, True)])
def test_a_domain_that_is_being_restored_is_skipped_with_the_node_as_the_reason(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder, process: int, ended: bool
) -> None:
    restoring = lock_at(cluster, "vms", "", UUID, 60, RESTORE)
    host = socket.gethostname()
    restoring = replace(restoring, owner=f"{RESTORE}{host}.{process}.0123abcd")
    message = f"the domain is being restored: instant restore on {host}"
    with (
        restoring.locked(stop, recorder, "web"),
        raises(message, Skipped) as caught,
        locked(cluster, stop, recorder),
    ):
        raise AssertionError("the block must not begin")
    assert isinstance(caught.value, HeldByRestore)
    assert (caught.value.here, caught.value.ended) == (True, ended)


def test_the_lock_is_renewed_as_long_as_the_block_lasts(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with locked(cluster, stop, recorder, duration=0.03):
        wait_until(lambda: cluster.claims.count(Claim.RENEW) >= 3, 5, "three renewals")
    assert not stop.requested


def test_a_job_that_cannot_start_the_thread_that_renews_its_lock_fails_and_is_retried(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with raises("can't start new thread", BackupError) as caught, locked(cluster, stop, recorder):
        pytest.fail("the block must not begin")
    assert caught.value.transient
    assert not lock(cluster).exists()


def test_the_lock_of_a_killed_process_is_waited_for_until_it_must_have_expired_or_the_job_is_stopped(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    cluster.locks[NAME] = cluster.tokens[NAME] = f"{socket.gethostname()}.{dead.pid}.abcdef01"
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    waited = lock(cluster, 60).locked_after_dead
    with pytest.raises(HeldByDead), waited(stop, recorder, "web"):
        pytest.fail("the block must not begin")
    assert 1060 < clock[0] < 1070
    assert len(recorder.told(Level.INFO)) == 1
    assert len(recorder.told(Level.DEBUG)) > 50, "signs of life"
    stop.request(Interrupted("interrupted", 15))
    with raises("interrupted", Interrupted), waited(stop, recorder, "web"):
        pytest.fail("the block must not begin")


def test_a_lock_that_is_lost_requests_the_stop_and_is_left_to_its_new_owner(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with locked(cluster, stop, recorder, duration=0.03):
        cluster.locks[NAME] = "another node"
        wait_until(lambda: stop.requested and not stop.leased, 5, "the stop is requested")
    with raises(f"lost the domain's lock: the lock {NAME} beside image vms/web-root is held") as caught:
        stop.check()
    assert caught.value.transient, "the run tries the domain again"
    assert cluster.locks == {NAME: "another node"}


def test_a_lock_that_is_lost_counts_as_such_before_its_time_is_up(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with locked(cluster, stop, recorder, duration=9):
        assert stop.leased
        cluster.locks[NAME] = "another node"
        within(lambda: not stop.leased, 8, "the renewal after a third of it")


def test_a_lock_that_another_run_had_and_released_is_lost_too(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with locked(cluster, stop, recorder, duration=0.03):
        cluster.tokens[NAME] = "another node"
        del cluster.locks[NAME]
        wait_until(lambda: stop.requested, 5, "the stop is requested")
    with pytest.raises(
        TransientError, match=r"lost the domain's lock: .* has expired, and another owner has held it since"
    ):
        stop.check()
    assert cluster.locks == {}


def test_a_renewal_that_times_out_is_retried_and_the_lock_taken_again_where_it_has_expired(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    cluster.retry = CephRetry(limit=60)
    with locked(cluster, stop, recorder, duration=0.03):
        cluster.unreachable = True
        wait_until(lambda: recorder.told(Level.WARNING), 5, "a renewal has failed")
        wait_until(lambda: not stop.leased, 5, "the lock may have expired")
        cluster.locks.clear()  # it has
        stop.check()  # and the job goes on
        with raises("the domain's lock has expired and is not renewed yet") as caught:
            stop.check_leased()
        assert caught.value.transient
        cluster.unreachable = False
        wait_until(lambda: stop.leased, 5, "it is taken again")
        assert set(cluster.locks) == {NAME}
        wait_until(lambda: recorder.told(Level.INFO), 5, "that is reported")
    (warning,) = recorder.told(Level.WARNING)
    assert warning == (
        "cannot renew the domain's lock: connection timed out; retrying for up to 60 s (CEPH_STALL_TIMEOUT)"
    )
    assert recorder.told(Level.INFO) == ["the domain's lock is renewed again"]
    assert cluster.locks == {}


def test_a_lock_that_cannot_be_renewed_within_the_limit_ends_the_job(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    cluster.retry = CephRetry(limit=0.1)
    with locked(cluster, stop, recorder, duration=0.03):
        cluster.unreachable = True
        wait_until(lambda: stop.requested, 5, "the stop is requested")
        cluster.unreachable = False
    with pytest.raises(TransientError, match="lost the domain's lock: connection timed out"):
        stop.check()


def test_of_two_places_both_are_locked_or_none(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    other = PaperCluster("9-fsid")  # sorts last: it is taken last
    disks = (rbd_disk(address=OTHER), rbd_disk("vdb"))
    both = lock_of(domain(disks=disks), PaperClusters(cluster, {OTHER: other}), 3600)
    with both.locked(stop, recorder, "web"):
        assert set(cluster.locks) == set(other.locks) == {NAME}
        assert both.exists()
    assert cluster.locks == other.locks == {}
    other.locks[NAME] = "another node"
    message = "another run is backing up this domain, maybe on another node"
    with raises(message, LockHeld), both.locked(stop, recorder, "web"):
        raise AssertionError("the block must not begin")
    assert (cluster.locks, other.locks) == ({}, {NAME: "another node"})


def test_a_domain_without_a_definition_is_locked_by_its_place(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    lock = lock_at(cluster, "ssd", "ns", UUID, 60)
    assert lock.places == (f"{FSID}/ssd/ns",)
    with lock.locked(stop, recorder, "web"):
        assert set(cluster.locks) == {f"ssd/ns/{NAME}"}


def test_an_expired_lock_without_a_new_owner_leaves_nothing(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with locked(cluster, stop, recorder):
        cluster.locks.clear()
    assert (cluster.locks, recorder.messages) == ({}, [])


def test_a_lock_is_taken_once_the_cluster_answers_again(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    cluster.retry = CephRetry(limit=60)
    cluster.timeouts = 3
    with locked(cluster, stop, recorder):
        assert set(cluster.locks) == {NAME}
        assert stop.leased
    assert cluster.locks == {}


def test_of_two_places_the_first_is_taken_again_if_the_second_took_long(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = PaperCluster("9-fsid")
    disks = (rbd_disk(address=OTHER), rbd_disk("vdb"))
    both = lock_of(domain(disks=disks), PaperClusters(cluster, {OTHER: other}), 3600)
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    claim = other.lock

    def slow(*arguments: Any) -> None:
        if not other.claims:
            now[0] += 1300
            cluster.locks.clear()  # it has expired, and others may take it
        claim(*arguments)

    monkeypatch.setattr(other, "lock", slow)
    with both.locked(stop, recorder, "web"):
        assert set(cluster.locks) == set(other.locks) == {NAME}
        assert stop.leased


LEFT = "the domain's lock stays until it expires, within 3600 s (LOCK_DURATION): connection timed out"


def test_a_lock_that_cannot_be_released_is_a_warning(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with locked(cluster, stop, recorder):
        cluster.unreachable = True
    assert recorder.told(Level.WARNING) == [f"{LEFT} (hint: are the monitors up?)"]


@pytest.mark.parametrize("ended", [True, False], ids=["a lease that has ended", "a lease that lasts"])
def test_a_release_is_retried_no_longer_than_the_lock_lasts(
    ended: bool, cluster: PaperCluster, stop: StopRequest, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, released = [1000.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cluster, "remove_lock", lambda *arguments: released.append(arguments[-1]))
    with locked(cluster, stop, recorder):
        now[0] += 600
        if ended:
            stop.lease_until(1200)
            now[0] += 3600
    assert released == [1200 if ended else 4600]


def test_the_lock_that_could_not_even_be_taken_is_released_no_longer_than_it_lasts(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[float] = []
    monkeypatch.setattr(cluster, "remove_lock", lambda *arguments: released.append(arguments[-1]))
    cluster.unreachable = True
    with raises("connection timed out"), locked(cluster, stop, recorder):
        pass
    assert released[0] <= time.monotonic() + 3600


def test_the_block_s_error_survives_a_release_that_fails_too(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with raises("restic failed"), locked(cluster, stop, recorder):
        cluster.unreachable = True
        raise BackupError("restic failed")
    assert recorder.told(Level.WARNING) == [f"{LEFT} (hint: are the monitors up?)"]
