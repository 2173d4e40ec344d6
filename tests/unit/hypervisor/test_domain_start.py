"""backup/hypervisor/domain_start.py: when a running domain was started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import pytest

from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.domain_start import started

IDLE = """
<domain type='test'><name>idle</name><uuid>0a5b6b58-6f0b-4c8f-8f7e-0d9b6f2c4e01</uuid>
<memory unit='MiB'>64</memory><os><type>hvm</type></os>
<devices><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices>
</domain>
"""


def channel(path: object = "") -> Element:
    source = f"<source mode='bind' path='{path}'/>" if path else ""
    return fromstring(f"<channel>{source}<target name='org.qemu.guest_agent.0'/></channel>")


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with Hypervisor("test:///default") as hypervisor:
        yield hypervisor


def test_the_socket_of_the_agent_s_channel_tells_when_qemu_was_started(tmp_path: Path) -> None:
    path = tmp_path / "org.qemu.guest_agent.0"
    path.touch()
    os.utime(path, (1000.0, 2000.0))
    assert started(channel(path), local=True) == 2000.0
    assert started(channel(path), local=False) is None, "another node's file of that name"


def test_it_is_unknown_without_the_socket_or_a_channel(tmp_path: Path) -> None:
    assert started(channel(tmp_path / "missing"), local=True) is None
    assert started(channel(), local=True) is None
    assert started(None, local=True) is None


def test_a_guest_without_agent_that_is_idle_for_days_has_not_just_started(hypervisor: Hypervisor) -> None:
    """Its processors have used next to no time."""
    hypervisor.define(IDLE)
    (uuid,) = (one.uuid for one in hypervisor.domains() if one.name == "idle")
    hypervisor.start(uuid)
    found = hypervisor.domain(uuid)
    assert (found.agent_channel, found.agent_connected) == (True, False)
    assert found.started is None
