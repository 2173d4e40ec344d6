"""Domains that give faults the time to happen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, RbdDisk
from tests.lab.sample import MIB, make_image


@pytest.fixture(scope="package")
def large(lab: Lab) -> Iterator[str]:
    """A domain that is shut off, with two images, the second of which takes a while."""
    make_image(lab, "vms/large-first", 4 * MIB, {0: MIB})
    make_image(lab, "vms/large", 256 * MIB, {0: 200 * MIB})
    lab.define_domain("large", [RbdDisk("vda", "vms/large-first"), RbdDisk("vdb", "vms/large")])
    yield "large"
    lab.undefine_domain("large")
    lab.delete_image("vms/large-first")
    lab.delete_image("vms/large")


@pytest.fixture(scope="package")
def plain(lab: Lab) -> Iterator[str]:
    """A running domain whose image has no exclusive lock.

    With one, QEMU itself makes the snapshot, and holds back the guest's writes until the monitor has
    answered, frozen or not.
    """
    lab.create_image("vms/plain", 64 * MIB, "--image-feature", "layering")
    lab.define_domain("plain", [RbdDisk("vda", "vms/plain")])
    lab.start_domain("plain", wait_for_agent=True)
    yield "plain"
    lab.destroy_domain("plain")
    lab.undefine_domain("plain")
    lab.delete_image("vms/plain")
