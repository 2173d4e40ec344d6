"""Every kind of image: what is streamed of a snapshot is what `rbd export` gives, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, Callable

import pytest
import rados
import rbd

from backup.ceph import snapshot_listing
from backup.ceph.cluster import Cluster
from backup.model import ClusterAddress, Image
from tests.integration.scratch_image import MIB, ScratchImage
from tests.lab import Lab
from tests.lab.sample import make_image

ROUNDS = 2  # of changes, each compared
TOGETHER = 12  # images at a time: making a snapshot is mostly waiting for the monitor

# Options of `rbd create`, and the largest size of the image in bytes.
LAYOUTS = {
    **{
        f"objects of {1 << power} bytes": (("--object-size", f"{1 << power}B"), min(40 * MIB, 300 << power))
        for power in range(12, 26)
    },
    "stripes of 64 KiB over 5 objects": (("--stripe-unit", "64K", "--stripe-count", "5"), 50 * MIB),
    "stripes of 4 KiB over 16 objects": (
        ("--object-size", "1M", "--stripe-unit", "4K", "--stripe-count", "16"),
        30 * MIB,
    ),
    "stripes of 1 MiB over 3 objects": (
        ("--object-size", "8M", "--stripe-unit", "1M", "--stripe-count", "3"),
        70 * MIB,
    ),
    "data in another pool": (("--data-pool", "ssd"), 40 * MIB),
    "layering alone": (("--image-feature", "layering"), 40 * MIB),
    "exclusive-lock": (("--image-feature", "layering,exclusive-lock"), 40 * MIB),
    "object-map": (("--image-feature", "layering,exclusive-lock,object-map"), 40 * MIB),
    "journaling": (("--image-feature", "layering,exclusive-lock,journaling"), 40 * MIB),
}
PROTECTED = "protected"
ANCESTRIES = {
    "clone": (),
    "clone with smaller objects": ("--object-size", "64K", "--stripe-unit", "64K", "--stripe-count", "1"),
    "clone with stripes": ("--stripe-unit", "64K", "--stripe-count", "3"),
    "clone without object-map": ("--image-feature", "layering"),
    "clone of a protected snapshot": (),
    "flattened clone": (),
    "clone of a clone": (),
    "child of the clone of a clone": (),
}


@pytest.fixture(scope="module")
def outcomes(lab: Lab) -> Iterator[Mapping[str, Future[None]]]:
    """Put an image of each kind through its rounds."""
    with ExitStack() as stack:
        connection = stack.enter_context(rados.Rados(conffile=str(lab.ceph_conf)))
        pool = stack.enter_context(connection.open_ioctx("vms"))
        cluster = stack.enter_context(Cluster(ClusterAddress(), "", str(lab.ceph_conf), timeout=120))
        threads = stack.enter_context(ThreadPoolExecutor(TOGETHER))
        scratch = partial(ScratchImage, lab, pool, cluster)
        yield {
            **{kind: threads.submit(_layout, lab, scratch(f"layout of {kind}"), kind) for kind in LAYOUTS},
            **{kind: threads.submit(_ancestry, lab, pool, scratch, kind) for kind in ANCESTRIES},
        }


@pytest.mark.parametrize("kind", [*LAYOUTS, *ANCESTRIES])
def test_an_image_is_streamed_as_it_is_exported(outcomes: Mapping[str, Future[None]], kind: str) -> None:
    outcomes[kind].result()


def _layout(lab: Lab, image: ScratchImage, kind: str) -> None:
    options, largest = LAYOUTS[kind]
    image.create(largest + 513, options)
    try:
        for _ in range(ROUNDS):
            image.change(largest)
            image.compare()
    finally:
        lab.delete_image(image.spec)


def _ancestry(lab: Lab, pool: Any, scratch: Callable[[str], ScratchImage], kind: str) -> None:
    """Clone a base image, change the clone, compare; the parent's content is a part of the clone's."""
    generations = {"clone of a clone": 2, "child of the clone of a clone": 3}.get(kind, 1)
    line = [scratch(f"{kind}, generation {number}") for number in range(generations + 1)]
    line[0].create(21 * MIB + 7)
    line[0].change()
    try:
        for parent, child in zip(line, line[1:]):
            _clone(lab, parent, child, ANCESTRIES[kind], protected=PROTECTED in kind)
            child.compare()
            parent.compare()  # which has a snapshot of the admin's, and a child
            child.change(30 * MIB)
        if kind == "flattened clone":
            with rbd.Image(pool, line[-1].name) as image:
                image.flatten()
        for _ in range(ROUNDS):
            line[-1].compare()
            line[-1].change(30 * MIB)
    finally:
        for image in reversed(line):
            if PROTECTED in kind and image is not line[-1]:
                lab.rbd("snap", "unprotect", f"{image.spec}@base")
            lab.rbd("snap", "purge", "--no-progress", image.spec)
            lab.delete_image(image.spec)


def _clone(
    lab: Lab, parent: ScratchImage, child: ScratchImage, options: tuple[str, ...], protected: bool
) -> None:
    lab.rbd("snap", "create", "--no-progress", f"{parent.spec}@base")
    if protected:
        lab.rbd("snap", "protect", f"{parent.spec}@base")
    version = ("--rbd-default-clone-format", "1" if protected else "2")
    lab.rbd("clone", *version, *options, f"{parent.spec}@base", child.spec)


def test_a_terabyte_with_little_in_it_is_read_where_the_data_is(lab: Lab) -> None:
    size, data = 1 << 40, {0: 1, (300 << 30) + 5: 4096, (1 << 40) - 7: 7}
    make_image(lab, "vms/terabyte", size, data)
    try:
        with Cluster(ClusterAddress(), "", str(lab.ceph_conf), timeout=120) as cluster:
            image = cluster.identified(Image("vms", "terabyte"))
            cluster.create_snapshot(image, "ours")
            with cluster.reader(image, "ours") as reader:
                found = list(reader.extents())
            cluster.remove_snapshot(image, "ours")
    finally:
        lab.delete_image("vms/terabyte")
    assert reader.size == size
    for offset, length in data.items():
        assert any(one.offset <= offset and offset + length <= one.offset + one.length for one in found)
    assert sum(one.length for one in found) <= len(data) * 4 * MIB


def test_allocation_is_listed_in_pieces_of_any_size(
    lab: Lab, outcomes: Mapping[str, Future[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No piece need be a multiple of the objects or of the stripes."""
    for outcome in outcomes.values():
        outcome.exception()
    monkeypatch.setattr(snapshot_listing, "EXTENT_SLAB", 3 * MIB + 512)
    monkeypatch.setattr(snapshot_listing, "GAP", MIB)
    with ExitStack() as stack:
        connection = stack.enter_context(rados.Rados(conffile=str(lab.ceph_conf)))
        pool = stack.enter_context(connection.open_ioctx("vms"))
        cluster = stack.enter_context(Cluster(ClusterAddress(), "", str(lab.ceph_conf), timeout=120))
        for kind in ("stripes of 64 KiB over 5 objects", "layering alone"):
            _layout(lab, ScratchImage(lab, pool, cluster, f"pieces of {kind}"), kind)
        for kind in ("clone with stripes", "clone without object-map", "child of the clone of a clone"):
            _ancestry(lab, pool, lambda name: ScratchImage(lab, pool, cluster, f"pieces of {name}"), kind)


def test_an_object_map_that_lies_costs_nothing_that_librbd_reads(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers that bypass the map: one adds an object that it denies, one removes an object that it has."""
    monkeypatch.setattr(snapshot_listing, "EXTENT_SLAB", 4 * MIB)
    monkeypatch.setattr(snapshot_listing, "GAP", MIB)
    spec = "vms/lying"
    make_image(lab, spec, 60 * MIB, {0: MIB, 12 * MIB: MIB, 45 * MIB + 7: MIB})
    prefix = json.loads(lab.rbd("info", "--format", "json", spec))["block_name_prefix"]
    try:
        with ExitStack() as stack:
            connection = stack.enter_context(rados.Rados(conffile=str(lab.ceph_conf)))
            pool = stack.enter_context(connection.open_ioctx("vms"))
            cluster = stack.enter_context(Cluster(ClusterAddress(), "", str(lab.ceph_conf), timeout=120))
            pool.write_full(f"{prefix}.{5:016x}", b"bypassed")
            pool.remove_object(f"{prefix}.{3:016x}")
            ScratchImage(lab, pool, cluster, "lying").compare()
    finally:
        lab.delete_image(spec)
