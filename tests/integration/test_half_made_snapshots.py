"""A request for a snapshot times out, and the cluster carries out only its beginning, after all."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from backup.ceph.cluster import Cluster
from backup.ceph.errors import ClusterError
from backup.ceph.repository_pool import RepositoryAddress, RepositoryPool, repository_pool
from backup.model import Extent, Image
from tests.lab import Lab
from tests.lab.cluster import USER
from tests.lab.sample import MIB

POOL, NAME, SNAPSHOT = "ssd", "half-made", "virt-rbd-backup.half-made"
IMAGE = Image(POOL, NAME)
SIZE = 8 * MIB


@pytest.fixture
def pool(lab: Lab) -> Iterator[RepositoryPool]:
    """The lab's second pool, with an image."""
    with repository_pool(RepositoryAddress(str(lab.ceph_conf), USER, POOL), lambda: None) as pool:
        pool.create(NAME, SIZE, 4 * MIB)
        yield pool
        with pool.opened(NAME) as image:
            image.remove_snapshot(SNAPSHOT)
        lab.delete_image(f"{POOL}/{NAME}")


def begin_snapshot(cluster: Cluster, given_back: bool) -> None:
    """Put a snapshot into the image's header (cls_rbd, snapshot_add) without the rest of it.

    `given_back`: librbd has given its id back to the cluster, too, as it does when the request fails.
    """
    pool = cluster.pool_of(IMAGE)
    number = pool.create_self_managed_snap()
    name = SNAPSHOT.encode()
    request = struct.pack("<I", len(name)) + name + struct.pack("<Q", number)
    with cluster.opened(IMAGE) as opened:
        pool.execute(f"rbd_header.{opened.id()}", "rbd", "snapshot_add", request)
    if given_back:
        pool.remove_self_managed_snap(number)


@pytest.mark.parametrize("given_back", [False, True])
@pytest.mark.parametrize("seen", [False, True], ids=["not seen", "seen"])
def test_a_snapshot_of_a_repository_that_was_only_begun_is_made_anew(
    pool: RepositoryPool, seen: bool, given_back: bool
) -> None:
    """`seen`: librbd knows of it, as it has opened the image since."""
    content = os.urandom(SIZE)
    if seen:
        begin_snapshot(pool.cluster, given_back)
    with pool.opened(NAME) as image:
        image.start_write(0, content)()
        image.flush()
        if not seen:
            begin_snapshot(pool.cluster, given_back)
        image.make_snapshot(SNAPSHOT)
        image.start_write(0, bytes(SIZE))()
        image.flush()
        assert image.snapshots() == [SNAPSHOT]
    with pool.reader(NAME, SNAPSHOT) as reader:
        assert list(reader.extents(Extent(0, SIZE)))
        assert reader.start_read(0, SIZE)() == content
    assert pool.is_changed(NAME, SNAPSHOT)


def test_a_snapshot_of_a_domain_that_was_only_begun_is_an_error_that_is_retried(
    pool: RepositoryPool,
) -> None:
    cluster = pool.cluster
    with cluster.image_open(IMAGE):
        begin_snapshot(cluster, given_back=True)
        with pytest.raises(ClusterError, match="an attempt that timed out has begun it") as raised:
            cluster.create_snapshot(IMAGE, SNAPSHOT)
    assert (raised.value.number, raised.value.transient) == (errno.EAGAIN, True)
    cluster.remove_snapshot(IMAGE, SNAPSHOT)
    with cluster.image_open(IMAGE):
        cluster.create_snapshot(IMAGE, SNAPSHOT)
