"""Limits that an image or its pool has for guests (rbd_qos_*): only MAX_READ_RATE slows a backup down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.node import Node
from tests.lab import Lab, RbdDisk
from tests.lab.sample import MIB, make_image, remove_domain

NAME, SPEC = "limited", "ssd/limited"


@pytest.fixture(scope="module")
def limited(lab: Lab) -> Iterator[str]:
    try:
        make_image(lab, SPEC, 48 * MIB, {0: 40 * MIB})
        lab.define_domain(NAME, [RbdDisk("vda", SPEC)])
        yield NAME
    finally:
        remove_domain(lab, NAME, SPEC)


@pytest.fixture(params=["image", "pool"])
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param, SPEC if request.param == "image" else "ssd"


@pytest.mark.parametrize("name", ["rbd_qos_bps_limit", "rbd_qos_read_bps_limit", "rbd_qos_iops_limit"])
def test_a_limit_for_guests_does_not_slow_down_the_backup(
    node: Node, lab: Lab, limited: str, place: tuple[str, str], name: str
) -> None:
    kind, spec = place
    lab.rbd("config", kind, "set", spec, name, "2" if "iops" in name else str(MIB // 4))
    try:
        done = node.run("backup", limited)
    finally:
        lab.rbd("config", kind, "remove", spec, name)
    assert done.returncode == 0, done.stderr
    (image,) = node.report()["domains"][limited]["images"]
    assert image["seconds"] < 60


def test_max_read_rate_holds_whatever_the_image_allows(node: Node, lab: Lab, limited: str) -> None:
    lab.rbd("config", "image", "set", SPEC, "rbd_qos_read_bps_limit", str(1 << 30))
    try:
        done = node.run("backup", limited, MAX_READ_RATE=8 * MIB)
    finally:
        lab.rbd("config", "image", "remove", SPEC, "rbd_qos_read_bps_limit")
    assert done.returncode == 0, done.stderr
    (image,) = node.report()["domains"][limited]["images"]
    assert 4 < image["seconds"] < 60


def test_a_limit_that_holds_is_named(node: Node, lab: Lab, limited: str) -> None:
    """One with a burst of its own, with Ceph 16."""
    options = {"rbd_qos_bps_limit": str(2 * MIB), "rbd_qos_bps_burst": str(2 * MIB)}
    for name, value in options.items():
        lab.rbd("config", "image", "set", SPEC, name, value)
    try:
        done = node.run("backup", limited)
        checked = node.run("check").stdout
    finally:
        for name in options:
            lab.rbd("config", "image", "remove", SPEC, name)
    assert done.returncode == 0, done.stderr
    (image,) = node.report()["domains"][limited]["images"]
    text = f"reads of image {SPEC} are limited by rbd_qos_bps_limit = {2 * MIB} of the image"
    assert image["seconds"] < 12 or (text in done.stderr and text in checked)
