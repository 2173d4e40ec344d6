"""Domains that give faults the time to happen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Lab, RbdDisk
from tests.lab.sample import MIB, large_domain, remove_domain


@pytest.fixture(scope="package")
def large(lab: Lab) -> Iterator[str]:
    """Give all faults the domain with a large image: clients that were killed keep it open for a while."""
    with large_domain(lab) as name:
        yield name


@pytest.fixture(scope="package")
def plain(lab: Lab) -> Iterator[str]:
    """A running domain whose image has no exclusive lock.

    With one, QEMU itself makes the snapshot, and holds back the guest's writes until the monitor has
    answered, frozen or not.
    """
    try:
        lab.create_image("vms/plain", 64 * MIB, "--image-feature", "layering")
        lab.define_domain("plain", [RbdDisk("vda", "vms/plain")])
        lab.start_domain("plain", wait_for_agent=True)
        yield "plain"
    finally:
        remove_domain(lab, "plain", "vms/plain")
