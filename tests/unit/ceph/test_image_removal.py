"""backup/ceph/image_removal.py: after a signal a removal gets so much time that systemd kills nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from backup.ceph import image_removal
from backup.ceph.cluster import Cluster
from backup.ceph.errors import ClusterError
from backup.ceph.image_removal import EMPTIED_AT_A_TIME, ImageRemoval
from backup.ceph.repository_pool import RepositoryAddress, RepositoryPool
from backup.ceph.retry import CephRetry
from backup.errors import Interrupted
from backup.model import Image
from backup.system.stop_request import StopRequest

from ..raising import raises
from ..recorder import Recorder

IMAGE = Image("vms", "filling")
OBJECT = 4 << 20
STEP = EMPTIED_AT_A_TIME * OBJECT  # 32 GiB
STEPS = 10
SECONDS = 40.0  # for a step


class PaperCluster(Cluster):
    """A cluster with one image, whose removal takes long. A signal arrives when so many steps are done."""

    def __init__(self, stop: StopRequest, signal_after: int) -> None:
        self.user, self.client, self.timeout = "admin", "client.1", 60
        self.retry = CephRetry(900).of_connection(60)
        self._given_up = False
        self.stop, self.signal_after = stop, signal_after
        self.left = STEPS * STEP
        self.now = 1000.0

    @contextmanager
    def opened(self, image: Image, snapshot: str | None = None, read_only: bool = True) -> Iterator[Any]:
        yield self

    def identified(self, image: Image) -> Image:
        return image

    def watchers(self, image: Image) -> Sequence[str]:
        return ("this process",)

    def list_snaps(self) -> Sequence[object]:
        return ()

    def size(self) -> int:
        return self.left

    def stat(self) -> dict[str, int]:
        return {"obj_size": OBJECT}

    def resize(self, size: int) -> None:
        self.left = size
        self.now += SECONDS
        if self.left == (STEPS - self.signal_after) * STEP:
            self.stop._handle(signal.SIGTERM, None)


def cluster_with_signal(after: int, monkeypatch: pytest.MonkeyPatch) -> PaperCluster:
    cluster = PaperCluster(StopRequest(), after)
    monkeypatch.setattr(time, "monotonic", lambda: cluster.now)
    return cluster


def test_a_removal_goes_on_after_a_signal_and_is_given_up_while_systemd_still_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = cluster_with_signal(3, monkeypatch)
    message = "image vms/filling is removed only in part, 96.0 GiB are left"
    with raises(message, ClusterError) as caught:
        ImageRemoval(cluster, Recorder(), cluster.stop).empty(IMAGE)
    assert caught.value.hint == "the next restore to it removes the rest; or rbd rm vms/filling"
    assert 150 < cluster.stop.seconds_since_signal < 300 - SECONDS


def test_an_image_of_a_repository_is_left_to_the_next_removal_after_a_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = cluster_with_signal(3, monkeypatch)
    cluster.retry = CephRetry(900, cluster.stop.check).of_connection(60)
    with pytest.raises(Interrupted):
        RepositoryPool(RepositoryAddress("/nowhere", "admin", "vms"), cluster).remove(IMAGE.name)
    assert cluster.left == (STEPS - 3) * STEP


@pytest.mark.parametrize("after", [STEPS - 3, STEPS + 1], ids=["nearly done", "no signal"])
def test_a_removal_that_is_done_in_time_is_not_given_up(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_with_signal(after, monkeypatch)
    ImageRemoval(cluster, Recorder(), cluster.stop).empty(IMAGE)
    assert cluster.left == 0
    assert STEPS * SECONDS > image_removal.TIDY_LIMIT
