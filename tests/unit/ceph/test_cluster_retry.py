"""backup/ceph/cluster.py: operations on snapshots take effect once, however often they time out."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import pytest
import rbd

from backup.ceph import cluster as cluster_module
from backup.ceph.cluster import Cluster
from backup.ceph.errors import ClusterError
from backup.ceph.retry import CephRetry
from backup.errors import BackupError
from backup.model import Image
from backup.system.stop_request import StopRequest

from ..raising import raises

IMAGE = Image("vms", "root")


class SlowCluster(Cluster):
    """A cluster with one image; its first operations time out, with or without taking effect (`done`)."""

    def __init__(self, retry: CephRetry, times_out: int, done: bool) -> None:
        self.user, self.client, self.timeout = "libvirt", "client.1", 60
        self.retry = retry.of_connection(60)
        self.times_out = times_out
        self._given_up = False
        self.questions = 0
        self.done = done
        self.names = {"old", "foreign"}
        self.made = 0

    @contextmanager
    def opened(self, image: Image, snapshot: str | None = None, read_only: bool = True) -> Iterator[Any]:
        yield self

    def features(self) -> int:
        return 0  # nobody else removes its snapshots

    def object_exists(self, image: Image, name: str) -> bool:
        self.questions += 1
        if self.made <= self.times_out:
            raise ClusterError("connection timed out", number=110)
        return True

    def list_snaps(self) -> list[dict[str, Any]]:
        return [{"name": name, "id": number} for number, name in enumerate(sorted(self.names))]

    def remove_snap(self, name: str) -> None:
        self._do(lambda: self._gone(name))

    def rename_snap(self, name: str, new: str) -> None:
        def rename() -> None:
            self._gone(name)
            self.names.add(new)

        self._do(rename)

    def _gone(self, name: str) -> None:
        if name not in self.names:
            raise rbd.ImageNotFound("no such snapshot", errno=2)
        self.names.remove(name)

    def _do(self, effect: Callable[[], object]) -> None:
        self.made += 1
        if self.made <= self.times_out:
            if self.done:
                effect()
            raise rbd.OSError("timed out", errno=110)
        effect()


@pytest.mark.parametrize("done", [True, False])
def test_an_operation_that_timed_out_takes_effect_exactly_once(done: bool) -> None:
    cluster = SlowCluster(CephRetry(900), times_out=1, done=done)
    cluster.rename_snapshot(IMAGE, "old", "kept")
    assert cluster.names == {"kept", "foreign"}
    cluster.made = 0
    cluster.remove_snapshot(IMAGE, "kept")
    assert cluster.names == {"foreign"}


def test_a_snapshot_is_created_once_and_not_retried() -> None:
    cluster = SlowCluster(CephRetry(900), times_out=1, done=False)
    cluster._open_images = {}
    cluster.create_snap = lambda name: cluster.rename_snap("old", name)  # type: ignore[attr-defined]
    with raises("cannot create snapshot new of image vms/root: connection timed out", ClusterError):
        cluster.create_snapshot(IMAGE, "new")
    assert cluster.made == 1, "the guest is frozen"


def _after_a_timeout_and_a_stop(times_out: int) -> SlowCluster:
    """Return a cluster after an operation that timed out in a job that has to stop."""
    stop = StopRequest()
    cluster = SlowCluster(CephRetry(900, stop.check), times_out, done=False)
    stop.request(BackupError("interrupted"))
    with raises("cannot remove snapshot old of image vms/root: connection timed out", ClusterError):
        cluster.remove_snapshot(IMAGE, "old")
    return cluster


def test_a_job_that_has_to_stop_does_not_wait_for_further_timeouts() -> None:
    cluster = _after_a_timeout_and_a_stop(times_out=9)
    for _ in range(2):
        with pytest.raises(ClusterError, match="foreign of image vms/root: not tried, as the cluster does"):
            cluster.remove_snapshot(IMAGE, "foreign")
    assert (cluster.made, cluster.questions) == (1, 1)


def test_a_job_that_has_to_stop_removes_snapshots_from_a_cluster_that_answers_again() -> None:
    cluster = _after_a_timeout_and_a_stop(times_out=1)
    cluster.made += 1  # the stall is over
    cluster.remove_snapshot(IMAGE, "old")
    cluster.remove_snapshot(IMAGE, "foreign")
    assert (cluster.names, cluster.questions) == (set(), 1)


def test_the_removal_of_a_lock_outlasts_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = SlowCluster(CephRetry(900), times_out=1, done=False)
    removed: list[str] = []

    def operated(_image: Image, name: str, _operation: object) -> bool:
        cluster._do(lambda: removed.append(name))
        return True

    monkeypatch.setattr(cluster, "_lock_operated", operated)
    cluster.remove_lock(IMAGE, "lock", "node1.1.a")
    assert (removed, cluster.made) == (["lock"], 2)


class SilentAtFirst(SlowCluster):
    """A cluster whose image cannot be opened at first."""

    def __init__(self) -> None:
        super().__init__(CephRetry(900), times_out=0, done=False)
        self._open_images, self._lock_owners = {}, {}
        self.opens = 0

    def pool_of(self, image: Image) -> Any:
        return self

    def size(self) -> int:
        return 4096

    def watchers_list(self) -> list[dict[str, Any]]:
        return []

    def old_format(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (lambda cluster: cluster.image_size(IMAGE), 4096),
        (lambda cluster: cluster.watchers(IMAGE), []),
        (lambda cluster: cluster.identified(IMAGE), IMAGE),
        (lambda cluster: cluster.is_mirror(IMAGE), False),
        (lambda cluster: cluster.snapshot_names(IMAGE), ["foreign", "old"]),
        (lambda cluster: cluster.image_open(IMAGE).__enter__(), None),
    ],
    ids=["size", "watchers", "id", "mirror", "snapshots", "open"],
)
def test_what_is_asked_before_the_snapshots_outlasts_a_stall(
    question: Callable[[Cluster], object], answer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = SilentAtFirst()
    opened = silent.opened

    def silent_at_first(*arguments: Any, **more: Any) -> Any:
        silent.opens += 1
        if silent.opens == 1:
            raise rbd.OSError("timed out", errno=110)
        return opened(*arguments, **more)

    monkeypatch.setattr(silent, "opened", silent_at_first)
    monkeypatch.setattr(cluster_module, "require_fit", lambda *_: None)
    monkeypatch.setattr(cluster_module, "is_mirror", lambda _: False)
    monkeypatch.setattr(cluster_module, "owners", lambda _: [])
    assert question(silent) == answer
    assert silent.opens == 2


@pytest.mark.parametrize(("timeout", "number"), [(0, errno.ETIMEDOUT), (60, errno.EBADMSG)])
def test_an_answer_that_did_not_come_in_time_is_a_timeout_whatever_librbd_makes_of_it(
    timeout: int, number: int
) -> None:
    cluster = SlowCluster(CephRetry(), times_out=0, done=False)
    cluster.timeout = timeout
    with pytest.raises(ClusterError) as raised, cluster.errors("cannot create a snapshot of", IMAGE):
        raise rbd.OSError("bad message", errno=errno.EBADMSG)
    assert raised.value.number == number
    assert raised.value.transient == (number == errno.ETIMEDOUT)
