"""backup/ceph/record_object.py: a record is replaced only by who has read it as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backup.ceph.cluster import Cluster
from backup.ceph.errors import LockLost
from backup.ceph.record_object import create_record, read_record, remove_record, write_record
from backup.model import ClusterAddress, Image
from tests.lab import Lab

IMAGE, NAME = Image("ssd", "recorded"), "virt-rbd-backup.test"


@pytest.fixture
def cluster(lab: Lab) -> Iterator[Cluster]:
    with Cluster(ClusterAddress(), "", str(lab.ceph_conf), 20) as cluster:
        create_record(cluster, IMAGE, NAME, b"first")
        yield cluster
        remove_record(cluster, IMAGE, NAME)


def test_a_record_that_is_as_it_was_read_is_replaced(cluster: Cluster) -> None:
    write_record(cluster, IMAGE, NAME, b"2nd", b"first")
    assert read_record(cluster, IMAGE, NAME) == b"2nd"


@pytest.mark.parametrize("before", [b"other", b"first, and more", b"f1"])
def test_one_that_another_process_has_changed_stays(cluster: Cluster, before: bytes) -> None:
    with pytest.raises(LockLost, match="another process has changed the object"):
        write_record(cluster, IMAGE, NAME, b"second", before)
    assert read_record(cluster, IMAGE, NAME) == b"first"


def test_one_that_is_written_again_as_an_answer_was_lost_is_no_error(cluster: Cluster) -> None:
    write_record(cluster, IMAGE, NAME, b"second", b"first")
    write_record(cluster, IMAGE, NAME, b"second", b"first")
    assert read_record(cluster, IMAGE, NAME) == b"second"


def test_one_that_is_gone_is_not_made_again(cluster: Cluster) -> None:
    remove_record(cluster, IMAGE, NAME)
    with pytest.raises(LockLost):
        write_record(cluster, IMAGE, NAME, b"second", b"first")
    assert read_record(cluster, IMAGE, NAME) is None
