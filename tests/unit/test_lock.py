"""backup/lock.py: two nodes never back up the same domain at once."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest

from backup.cluster import Claim, LockHeld
from backup.errors import BackupError
from backup.lock import domain_lock, lock_exists
from backup.stop import StopRequest

from .paper_cluster import PaperCluster
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


def held(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder, duration: float = 3600
) -> AbstractContextManager[None]:
    seconds: int = duration  # type: ignore[assignment]  # below a second, for the test's sake
    return domain_lock(cluster, image("vms/web-root"), domain(), seconds, stop, recorder)


def test_the_lock_is_held_during_the_block_and_gone_after_it(
    cluster: PaperCluster, stop: StopRequest, recorder: Recorder
) -> None:
    assert not lock_exists(cluster, image("vms/web-root"), domain())
    with held(cluster, stop, recorder):
        assert set(cluster.locks) == {NAME}
        assert lock_exists(cluster, image("vms/web-root"), domain())
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
