"""backup/run/largest_first.py: the domain with the largest images comes first, at whichever libvirt it is."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import Callable, cast

import pytest

from backup.ceph.errors import ClusterError
from backup.errors import Interrupted
from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.connections import Hypervisors
from backup.model import Domain, Image
from backup.run import largest_first as largest
from backup.run.largest_first import largest_first
from backup.system.stop_request import StopRequest

from ..driver_node import domain_element, node_uri
from ..paper_cluster import PaperCluster, PaperClusters
from ..raising import raises
from ..samples import domain, foreign_disk, rbd_disk, settings

SIZES = {"vms/small": 1, "vms/large": 100, "vms/half": 50}


class SizedCluster(PaperCluster):
    """Knows the sizes of images as a libvirt's domains have them."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.snapshots = {name: set() for name in SIZES}

    def image_size(self, image: Image) -> int:
        if image.name.startswith("hung"):
            assert self.go_on.wait(20)
        super().image_size(image)  # raises ImageGone
        return SIZES[str(image)] * self.factor


Order = Callable[..., list[str]]


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Order]:
    """Sort domains by their names; those of the second libvirt have images of ten times the size."""
    uris = [node_uri(tmp_path / f"{name}.xml", domain_element()) for name in ("first", "second")]

    made: list[SizedCluster] = []

    def clusters(secret_of: MethodType, *_: object) -> PaperClusters:
        made.append(SizedCluster(10 if cast(Hypervisor, secret_of.__self__).uri == uris[1] else 1))
        return PaperClusters(made[-1])

    monkeypatch.setattr(largest, "Clusters", clusters)

    def named(name: str, *images: str, second: bool = False) -> Domain:
        disks = [rbd_disk(f"vd{letter}", image) for letter, image in zip("abc", images)]
        return domain(name, disks=[*disks, foreign_disk()], uri=uris[second])

    def ordered(
        first: dict[str, list[str]],
        second: dict[str, list[str]],
        check_stop: Callable[[], None] = lambda: None,
    ) -> list[str]:
        domains = [named(name, *images) for name, images in first.items()]
        domains += [named(name, *images, second=True) for name, images in second.items()]
        with Hypervisors(uris) as hypervisors:
            return [one.name for one, _ in largest_first(domains, hypervisors, settings(), check_stop)]

    yield ordered
    for cluster in made:
        cluster.go_on.set()


def test_the_sum_of_a_domain_s_images_counts(order: Order) -> None:
    first = {"small": ["vms/small"], "halves": ["vms/half", "vms/half", "vms/small"], "large": ["vms/large"]}
    assert order(first, {}) == ["halves", "large", "small"]


def test_each_image_s_size_is_read_at_its_own_domain_s_libvirt(order: Order) -> None:
    first = {"large": ["vms/large"], "small": ["vms/small"]}
    assert order(first, {"half": ["vms/half"]}) == ["half", "large", "small"]


def test_an_image_that_can_t_be_opened_counts_as_empty(order: Order) -> None:
    assert order({"gone": ["vms/gone"], "bare": [], "small": ["vms/small"]}, {}) == ["small", "gone", "bare"]


HUNG = {f"hung{number}": [f"vms/hung{number}"] for number in range(200)}


def test_a_pool_that_hangs_costs_one_limit_whatever_the_number_of_its_images(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(largest, "LIMIT", 3.0)
    began = time.monotonic()
    names = order({"small": ["vms/small"], **HUNG}, {"large": ["vms/large"]})
    assert time.monotonic() < began + 15
    assert names[-200:] == [*HUNG], "what is not known in time counts as empty"


def test_once_an_image_of_a_pool_has_timed_out_no_other_size_is_read_there(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def late(self: SizedCluster, one: Image) -> int:
        asked.append(one.pool)
        if one.pool == "hung":
            raise ClusterError("no answer", number=errno.ETIMEDOUT)
        return 1

    monkeypatch.setattr(SizedCluster, "image_size", late)
    assert (
        order({f"{number}": [f"hung/{number}"] for number in range(100)} | {"web": ["vms/small"]}, {})[0]
        == "web"
    )
    assert asked.count("hung") <= largest.AT_A_TIME


def test_a_stop_is_heard_while_all_calls_hang(order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largest, "LIMIT", 60.0)
    stop = StopRequest()
    threading.Timer(0.2, stop.request, [Interrupted("interrupted", 15)]).start()
    began = time.monotonic()
    with raises("interrupted", Interrupted):
        order(HUNG, {}, stop.check)
    assert time.monotonic() < began + 15
