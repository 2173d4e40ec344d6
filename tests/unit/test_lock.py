"""backup/lock.py: two nodes never back up the same domain at once."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest

from backup.cluster import Claim
from backup.cluster_errors import LockHeld
from backup.errors import BackupError
from backup.lock import DomainLock, lock_of
from backup.stop import StopRequest

from .paper_cluster import PaperCluster, PaperClusters
from .raising import raises
from .recorder import Recorder
from .samples import UUID, domain, image
from .waiting import wait_until

NAME = f"virt-rbd-backup.lock.{UUID}"


@pytest.fixture
def cluster() -> PaperCluster:
    return PaperCluster()


@pytest.fixture
def stop() -> StopRequest:
    return StopRequest()


def lock(cluster: PaperCluster, duration: float = 3600) -> DomainLock:
    seconds: int = duration  # type: ignore[assignment]  # below a second, for the test's sake
    return lock_of(domain(), PaperClusters(cluster), seconds)


def held(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder, duration: float = 3600
) -> AbstractContextManager[None]:
    return lock(cluster, duration).held(stop, recorder, "web")


def test_the_lock_lies_beside_the_first_image_of_the_definition(cluster: PaperCluster) -> None:
    assert lock(cluster).image == image("vms/web-root")
    with raises("the domain has no RBD image"):
        lock_of(replace(domain(), disks=()), PaperClusters(cluster), 60)


def test_a_renewal_that_hangs_for_longer_than_the_lock_lasts_ends_the_job(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with held(cluster, stop, recorder, duration=0.05):
        cluster.claim_hangs.set()
        time.sleep(0.06)  # what is tested is the time itself
        with raises("the domain's lock could not be renewed in time"):
            stop.check()
        cluster.go_on.set()


def test_the_lock_is_held_during_the_block_and_gone_after_it(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    assert not lock(cluster).exists()
    with held(cluster, stop, recorder):
        assert set(cluster.locks) == {NAME}
        assert lock(cluster).exists()
    assert cluster.locks == {}


def test_a_second_run_is_refused_and_leaves_the_first_one_its_lock(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with held(cluster, stop, recorder):
        before = dict(cluster.locks)
        message = "another run backs up this domain, maybe on another node"
        with raises(message, LockHeld) as caught, held(cluster, stop, recorder):
            raise AssertionError("the block must not begin")
        assert NAME in caught.value.hint
        assert cluster.locks == before


def test_the_lock_is_renewed_as_long_as_the_block_lasts(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with held(cluster, stop, recorder, duration=0.03):
        wait_until(lambda: cluster.claims.count(Claim.RENEW) >= 3, 5, "three renewals")
    assert not stop.requested


def test_a_lock_that_is_lost_requests_the_stop_and_is_left_to_its_new_owner(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with held(cluster, stop, recorder, duration=0.03):
        cluster.locks[NAME] = "another node"
        wait_until(lambda: stop.requested, 5, "the stop is requested")
    with raises(f"lost the domain's lock: the lock {NAME} beside image vms/web-root is held"):
        stop.check()
    assert cluster.locks == {NAME: "another node"}


def test_a_lock_that_has_expired_with_nobody_else_s_in_its_place_leaves_nothing(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with held(cluster, stop, recorder):
        cluster.locks.clear()
    assert (cluster.locks, recorder.messages) == ({}, [])


def test_the_block_s_error_survives_a_release_that_fails_too(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    with raises("restic failed"), held(cluster, stop, recorder):
        cluster.unreachable = True
        raise BackupError("restic failed")
    assert [text for _, _, text in recorder.messages] == ["connection timed out (hint: are the monitors up?)"]
