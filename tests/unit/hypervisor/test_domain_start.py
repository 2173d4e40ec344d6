"""backup/hypervisor/domain_start.py: when a running domain was started."""

from __future__ import annotations

import os
import time
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import libvirt
import pytest

from backup.hypervisor.domain_start import started


class Processors:
    """A virDomain with two processors that have run for 120 seconds together."""

    def info(self) -> list[int]:
        return [1, 1024, 1024, 2, 120 * 10**9]


class Silent:
    """A virDomain whose libvirt refuses."""

    def info(self) -> list[int]:
        raise libvirt.libvirtError("refused")


def channel(path: object = "") -> Element:
    source = f"<source mode='bind' path='{path}'/>" if path else ""
    return fromstring(f"<channel>{source}<target name='org.qemu.guest_agent.0'/></channel>")


def test_the_socket_of_the_agent_s_channel_tells_when_qemu_was_started(tmp_path: Path) -> None:
    path = tmp_path / "org.qemu.guest_agent.0"
    path.touch()
    os.utime(path, (1000.0, 2000.0))
    assert started(Silent(), channel(path), local=True, connected=True) == 2000.0


@pytest.mark.parametrize("local", [True, False], ids=["not readable", "on another node"])
def test_without_it_the_time_of_the_processors_bounds_it(tmp_path: Path, local: bool) -> None:
    path = tmp_path / "missing" if local else tmp_path
    found = started(Processors(), channel(path), local, connected=False)
    assert found == pytest.approx(time.time() - 60, abs=5)
    assert started(Processors(), channel(path), local, connected=True) is None


def test_it_is_unknown_where_libvirt_refuses_and_without_a_channel() -> None:
    assert started(Silent(), channel(), local=True, connected=False) is None
    assert started(Processors(), None, local=True, connected=False) is None
