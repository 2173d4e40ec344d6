"""backup/ceph/cluster.py, lock_request.py: the lock object of a domain, on a real cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from backup.ceph.cluster import LOCK_NAME, Claim, Cluster
from backup.ceph.errors import LockHeld, LockLost
from backup.job.domain_lock import lock_at
from backup.model import ClusterAddress, Image
from backup.system.stop_request import StopRequest
from tests.integration.node import within
from tests.lab import Lab
from tests.unit.recorder import Recorder

IMAGE = Image("ssd", "no-matter")
NAME = "virt-rbd-backup.lock.test"
SHORT = 1  # seconds


@pytest.fixture
def clusters(lab: Lab) -> Iterator[tuple[Cluster, Cluster]]:
    """Give the connections of two nodes."""
    with ExitStack() as stack:
        address, conf = ClusterAddress(user=lab.ceph_user), str(lab.ceph_conf)
        one, other = (stack.enter_context(Cluster(address, "", conf, 20)) for _ in range(2))
        yield one, other
        one.remove_lock(IMAGE, NAME, "one")
        other.remove_lock(IMAGE, NAME, "other")
        assert not one.object_exists(IMAGE, NAME)


def _expire() -> None:
    time.sleep(1.5 * SHORT)  # what is tested is the time itself


def _taken_by_other(other: Cluster, duration: int) -> None:
    """Have the other take it as soon as it has expired."""

    def taken() -> bool:
        try:
            other.lock(IMAGE, NAME, "other", duration, Claim.TAKE)
        except LockHeld:
            return False
        return True

    within(taken, 10, "it has expired")


def test_a_lock_is_one_s_alone_until_it_is_removed(clusters: tuple[Cluster, Cluster]) -> None:
    one, other = clusters
    one.lock(IMAGE, NAME, "one", 60, Claim.TAKE)
    one.lock(IMAGE, NAME, "one", 60, Claim.TAKE)  # whose answer was lost
    one.lock(IMAGE, NAME, "one", 60, Claim.RENEW)
    with pytest.raises(LockHeld):
        other.lock(IMAGE, NAME, "other", 60, Claim.TAKE)
    with pytest.raises(LockLost):
        other.lock(IMAGE, NAME, "other", 60, Claim.RENEW)
    other.remove_lock(IMAGE, NAME, "other")
    assert one.object_exists(IMAGE, NAME)
    assert other.last_owner(IMAGE, NAME) == "one"
    one.remove_lock(IMAGE, NAME, "one")
    assert not one.object_exists(IMAGE, NAME)
    assert other.last_owner(IMAGE, NAME) == ""
    one.remove_lock(IMAGE, NAME, "one")
    other.lock(IMAGE, NAME, "other", 60, Claim.TAKE)


def test_an_expired_lock_is_renewed_if_no_other_owner_has_held_it(clusters: tuple[Cluster, Cluster]) -> None:
    one, other = clusters
    one.lock(IMAGE, NAME, "one", SHORT, Claim.TAKE)
    _expire()
    one.lock(IMAGE, NAME, "one", 60, Claim.RENEW)
    with pytest.raises(LockHeld):
        other.lock(IMAGE, NAME, "other", 60, Claim.TAKE)


def test_a_lock_that_somebody_else_has_had_since_is_lost(clusters: tuple[Cluster, Cluster]) -> None:
    one, other = clusters
    one.lock(IMAGE, NAME, "one", SHORT, Claim.TAKE)
    _taken_by_other(other, SHORT)
    _expire()
    with pytest.raises(LockLost, match="has expired, and another owner has held it since"):
        one.lock(IMAGE, NAME, "one", 60, Claim.RENEW)
    one.remove_lock(IMAGE, NAME, "one")
    assert one.object_exists(IMAGE, NAME), "the other's"
    other.lock(IMAGE, NAME, "other", SHORT, Claim.RENEW)
    other.remove_lock(IMAGE, NAME, "other")
    with pytest.raises(LockLost):  # it is gone without a trace
        one.lock(IMAGE, NAME, "one", 60, Claim.RENEW)
    assert not one.object_exists(IMAGE, NAME)


def test_a_lock_of_an_older_version_which_names_no_owner_is_respected(
    clusters: tuple[Cluster, Cluster],
) -> None:
    one, other = clusters
    one.lock(IMAGE, NAME, "one", SHORT, Claim.TAKE)
    _expire()
    other.pool_of(IMAGE).lock_exclusive(NAME, LOCK_NAME, "old", "old", 60, 0)
    with pytest.raises(LockHeld):
        one.lock(IMAGE, NAME, "one", 60, Claim.RENEW)
    one.remove_lock(IMAGE, NAME, "one")
    assert one.object_exists(IMAGE, NAME)
    other.pool_of(IMAGE).remove_object(NAME)


def test_it_can_be_taken_in_one_place_by_its_domain_alone(clusters: tuple[Cluster, Cluster]) -> None:
    one, other = clusters
    recorder = Recorder()
    lock = lock_at(one, "ssd", "", "test", 60)
    assert lock.places == (f"{one.fsid}/ssd/",)
    with lock.locked(StopRequest(), recorder, "web"), pytest.raises(LockHeld):
        other.lock(IMAGE, NAME, "other", 60, Claim.TAKE)
    assert not one.object_exists(IMAGE, NAME)
    assert recorder.messages == []
