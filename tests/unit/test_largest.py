"""backup/largest.py: the domain with the largest images comes first, at whichever libvirt it is."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from backup import largest
from backup.hypervisor import Hypervisor
from backup.hypervisors import Hypervisors
from backup.largest import largest_first
from backup.model import Domain, Image

from .driver_node import domain_element, node_uri
from .paper_cluster import PaperCluster, PaperClusters
from .samples import domain, foreign_disk, rbd_disk, settings

SIZES = {"vms/small": 1, "vms/large": 100, "vms/half": 50}


class SizedCluster(PaperCluster):
    """Knows the sizes of images as a libvirt's domains have them."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.snapshots = {name: set() for name in SIZES}

    def image_size(self, image: Image) -> int:
        super().image_size(image)  # raises ImageGone
        return SIZES[str(image)] * self.factor


Order = Callable[..., list[str]]


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Order:
    """Sort domains by their names; those of the second libvirt have images of ten times the size."""
    uris = [node_uri(tmp_path / f"{name}.xml", domain_element()) for name in ("first", "second")]

    def clusters(hypervisor: Hypervisor, *_: object) -> PaperClusters:
        return PaperClusters(SizedCluster(10 if hypervisor.uri == uris[1] else 1))

    monkeypatch.setattr(largest, "Clusters", clusters)

    def named(name: str, *images: str, second: bool = False) -> Domain:
        disks = [rbd_disk(f"vd{letter}", image) for letter, image in zip("abc", images)]
        return domain(name, disks=[*disks, foreign_disk()], uri=uris[second])

    def ordered(first: dict[str, list[str]], second: dict[str, list[str]]) -> list[str]:
        domains = [named(name, *images) for name, images in first.items()]
        domains += [named(name, *images, second=True) for name, images in second.items()]
        with Hypervisors(uris) as hypervisors:
            return [one.name for one, _ in largest_first(domains, hypervisors, settings())]

    return ordered


def test_the_sum_of_a_domain_s_images_counts(order: Order) -> None:
    first = {"small": ["vms/small"], "halves": ["vms/half", "vms/half", "vms/small"], "large": ["vms/large"]}
    assert order(first, {}) == ["halves", "large", "small"]


def test_each_image_is_looked_for_where_its_own_domain_is(order: Order) -> None:
    first = {"large": ["vms/large"], "small": ["vms/small"]}
    assert order(first, {"half": ["vms/half"]}) == ["half", "large", "small"]


def test_an_image_that_can_t_be_opened_counts_as_empty(order: Order) -> None:
    assert order({"gone": ["vms/gone"], "bare": [], "small": ["vms/small"]}, {}) == ["small", "gone", "bare"]
