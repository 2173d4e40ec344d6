"""The repository is in another cluster, with a user of its own, and the link to it breaks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Callable

import pytest

from backup.ceph.image_lock import LOCK_NAME, MANAGED_TAG
from backup.ceph.lock_request import lock_request
from backup.ceph.repository_image import RepositoryImage
from backup.ceph.repository_pool import RepositoryAddress, repository_pool
from tests.faults.provoke import stopped
from tests.integration.node import Node, wait_until
from tests.lab import Lab, LabError
from tests.lab.cluster import USER, Cluster
from tests.lab.daemon import Daemon
from tests.lab.sample import ARCHIVE, MIB, large_domain

WRITING = "virt-rbd-backup.writing"
SLOW = 24 * MIB  # bytes/s, as MAX_WRITE_RATE


@pytest.fixture(scope="module")
def other_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A second cluster, on IPv6."""
    cluster = Cluster(tmp_path_factory.mktemp("other") / "ceph", "::1", 3301, 6790)
    cluster.refuse_taken_ports()
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def there(node: Node, other_cluster: Cluster) -> Iterator[Cluster]:
    """The node saves into a pool of it, as a user that may do what a user of RBD may."""
    node.constants.update(
        OUTPUT="rbd",
        RBD_OUTPUT_CONF=str(other_cluster.conf),
        RBD_OUTPUT_USER=USER,
        RBD_OUTPUT_POOL="ssd",
        LOCK_DURATION=30,
    )
    yield other_cluster
    done = node.run("cleanup", "--all")
    for name in images(other_cluster, "ssd"):
        for snapshot in json.loads(other_cluster.rbd("snap", "ls", "--format", "json", f"ssd/{name}")):
            with suppress(LabError):  # where the test has failed, it may not be protected yet
                other_cluster.rbd("snap", "unprotect", f"ssd/{name}@{snapshot['name']}")
        other_cluster.rbd("snap", "purge", "--no-progress", f"ssd/{name}")
        other_cluster.rbd("rm", "--no-progress", f"ssd/{name}")
    assert done.returncode == 0, done.stderr


def images(cluster: Cluster, pool: str) -> Sequence[str]:
    return [str(name) for name in json.loads(cluster.rbd("ls", "--format", "json", pool))]


def complete(node: Node) -> Sequence[str]:
    """Give the runs of the restore points that count."""
    done = node.run("restore-points", "--json")
    assert done.returncode == 0, done.stderr
    return [one["run"] for one in json.loads(done.stdout) if one["complete"]]


def pid_of(daemon: Daemon) -> int:
    assert daemon.pid
    return daemon.pid


def is_written(cluster: Cluster) -> bool:
    """Whether a disk's image is being written."""
    names = [name for name in images(cluster, "ssd") if name.endswith(".vdb")]
    with suppress(LabError):  # it is just being created
        return any(WRITING.encode() in cluster.rbd("image-meta", "ls", f"ssd/{name}") for name in names)
    return False


def test_a_domain_is_saved_into_another_cluster_and_cloned_there(
    node: Node, lab: Lab, there: Cluster
) -> None:
    assert node.run("check").returncode == 0
    done = node.run("backup", "--verify", ARCHIVE)
    assert done.returncode == 0, done.stderr
    assert len(images(there, "ssd")) == 2
    assert node.run("verify", ARCHIVE).returncode == 0
    done = node.run("restore", ARCHIVE, "--clone")
    assert done.returncode == 0, done.stderr
    assert images(there, "vms") == [ARCHIVE]
    whole = lab.rbd("export", "--no-progress", f"vms/{ARCHIVE}", "-")
    assert there.rbd("export", "--no-progress", f"vms/{ARCHIVE}", "-") == whole
    there.rbd("rm", "--no-progress", f"vms/{ARCHIVE}")
    done = node.run("drill", ARCHIVE, DRILL_POOL="ssd")
    assert done.returncode == 0, done.stderr
    assert "restored to ssd/" in done.stderr, "a copy, as the pool for drills is in the other cluster"


# The first change of an image that is open takes its lock.
FIRST_CHANGES: dict[str, Callable[[RepositoryImage], None]] = {
    "a note": lambda image: image.note("first", "change"),
    "a size": lambda image: image.resize(8 * MIB),
    "a snapshot": lambda image: image.make_snapshot("virt-rbd-backup.first"),
    "a write": lambda image: image.start_write(0, bytes(MIB))(),
    "a flush": lambda image: image.flush(),
}


@pytest.mark.parametrize("change", FIRST_CHANGES)
def test_an_image_s_lock_that_cannot_be_taken_in_time_is_taken_later(there: Cluster, change: str) -> None:
    address = RepositoryAddress(str(there.conf), USER, "ssd", timeout=2, stall_timeout=300)
    with (
        ThreadPoolExecutor(1) as thread,
        repository_pool(address, lambda: None) as pool,
    ):
        pool.create("first", 4 * MIB, 4 * MIB)
        with pool.opened("first") as image:
            with stopped(pid_of(there.osd)):
                changed = thread.submit(FIRST_CHANGES[change], image)
                time.sleep(6)  # three timeouts
                assert not changed.done(), changed.exception()
            changed.result(timeout=300)


@pytest.mark.parametrize("renewed", [False, True], ids=["same watch", "new watch"])
@pytest.mark.parametrize("change", FIRST_CHANGES)
def test_an_image_s_lock_that_was_taken_too_late_is_taken_anew(
    there: Cluster, change: str, renewed: bool
) -> None:
    """The OSD carries out a request for the lock that has timed out: librbd has the lock, and is not told."""
    address = RepositoryAddress(str(there.conf), USER, "ssd", timeout=10, stall_timeout=30)
    with repository_pool(address, lambda: None) as pool:
        pool.create("first", 4 * MIB, 4 * MIB)
        with pool.opened("first") as image:
            take_lock(image, renewed)
            FIRST_CHANGES[change](image)
        assert "first" in images(there, "ssd")


def take_lock(image: RepositoryImage, renewed: bool) -> None:
    """Take an image's lock as its librbd does, without its knowledge; `renewed`: it has a new watch since."""
    opened, cluster = image._opened, image._cluster
    (watcher,) = opened.watchers_list()
    cookie = f"auto {watcher['cookie'] - renewed}"
    request = lock_request(LOCK_NAME, cookie, 0, tag=MANAGED_TAG, flags=0)
    cluster.pool_of(image._image).execute(f"rbd_header.{opened.id()}", "lock", "lock", request)


def test_a_link_that_stalls_for_a_while_costs_nothing(node: Node, lab: Lab, there: Cluster) -> None:
    with large_domain(lab) as name:
        with node.started("backup", name, MAX_WRITE_RATE=SLOW, CEPH_TIMEOUT=10) as process:
            wait_until(lambda: len(images(there, "ssd")) == 3, 60, "both disks are being written")
            with stopped(pid_of(there.osd), pid_of(there.monitor)):
                time.sleep(25)  # longer than a timeout
            output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert len(complete(node)) == 1
        assert node.run("verify", name).returncode == 0
        assert node.run("cleanup", "--all").returncode == 0


def test_a_link_that_breaks_costs_no_finished_restore_point(node: Node, lab: Lab, there: Cluster) -> None:
    with large_domain(lab) as name:
        done = node.run("backup", name)
        assert done.returncode == 0, done.stderr
        before = complete(node)
        lab.rbd("snap", "purge", "--no-progress", "vms/large")  # so that everything is read
        with node.started(
            "backup", name, MAX_WRITE_RATE=SLOW, MAX_READ_RATE=SLOW, CEPH_TIMEOUT=10, CEPH_STALL_TIMEOUT=12
        ) as process:
            wait_until(lambda: is_written(there), 60, "a disk is being written")
            with stopped(pid_of(there.osd)):
                # mostly a minute or two; a worker that hangs in librbd is ended after 13 minutes
                output, _ = process.communicate(timeout=900)
        assert process.returncode == 3, output
        assert complete(node) == before
        assert node.run("verify", name).returncode == 0
        done = node.run("backup", name)
        assert done.returncode == 0, done.stderr
        assert len(complete(node)) == 2
        assert node.run("verify", name).returncode == 0
        assert node.run("cleanup", "--all").returncode == 0
