"""backup/hypervisor/domain_xml.py: disks, agent and NVRAM in a domain's XML."""

from __future__ import annotations

import pytest

from backup.hypervisor.disk_xml import Places
from backup.hypervisor.domain_xml import agent_connected, disks, nvram_path
from backup.model import Disk, Gap

from ..disk_elements import PLACES, backing, domain_of, other, rbd


def test_all_disks_are_found_in_order_with_their_layers() -> None:
    overlay = rbd("vms/b", beside=backing("network", "<source protocol='rbd' name='vms/c'/>"), target="vdb")
    found = disks(domain_of(rbd("vms/a"), other("file", "<source file='/x'/>"), overlay), PLACES)
    assert [(disk.target, disk.source) for disk in found] == [
        ("vda", "vms/a"),
        ("vda", "/x"),
        ("vdb", "vms/b"),
        ("vdb.backing1", "vms/c"),
    ]


def test_disk_elements_outside_of_devices_are_ignored() -> None:
    snapshot = f"<domain><disks>{rbd()}</disks><devices><interface>{rbd()}</interface></devices></domain>"
    assert disks(snapshot, PLACES) == ()


NVRAM = {
    "<nvram>/var/lib/nvram/web.fd</nvram>": "/var/lib/nvram/web.fd",
    "<nvram template='/usr/share/OVMF_VARS.fd'>\n  /var/lib/web.fd\n</nvram>": "/var/lib/web.fd",
    "<nvram type='file'><source file='/srv/nvram/web.fd'/></nvram>": "/srv/nvram/web.fd",
    "<nvram template='/usr/share/OVMF_VARS.fd'/>": "",
    "<varstore template='/usr/share/vars.json' path='/srv/varstore/web.json'/>": "/srv/varstore/web.json",
    "": "",
}


@pytest.mark.parametrize("element", NVRAM)
def test_the_nvram_s_path_is_found_in_each_notation(element: str) -> None:
    assert nvram_path(f"<domain><os><type>hvm</type>{element}</os></domain>") == NVRAM[element]


def other_nvram(nvram: str) -> Disk:
    places = Places(lambda _: "<pool/>", lambda _: None)
    (disk,) = disks(f"<domain><os><type>hvm</type>{nvram}</os><devices/></domain>", places)
    assert nvram_path(f"<domain><os>{nvram}</os></domain>") == ""
    return disk


def test_nvram_that_is_neither_a_file_nor_on_rbd_cannot_be_backed_up() -> None:
    disk = other_nvram("<nvram type='block'><source dev='/dev/vg/nvram'/></nvram>")
    reason = "NVRAM that is neither a file nor an RBD image: no RBD image (block)"
    assert (str(disk), disk.skipped, disk.gap) == ("nvram (/dev/vg/nvram)", reason, Gap.BROKEN)


def test_nvram_on_an_rbd_image_is_saved_like_a_disk() -> None:
    disk = other_nvram("<nvram type='network'><source protocol='rbd' name='vms/web-vars'/></nvram>")
    assert (disk.target, str(disk.image), disk.gap) == ("nvram", "vms/web-vars", Gap.NONE)


@pytest.mark.parametrize(
    ("target", "connected"),
    [
        ("name='org.qemu.guest_agent.0' state='connected'", True),
        ("name='org.qemu.guest_agent.0' state='disconnected'", False),
        ("name='org.qemu.guest_agent.0'", False),
        ("name='com.redhat.spice.0' state='connected'", False),
    ],
)
def test_an_agent_is_connected_only_if_its_own_channel_is(target: str, connected: bool) -> None:
    channels = (
        "<channel type='spicevmc'/>",
        f"<channel type='unix'><target type='virtio' {target}/></channel>",
    )
    assert agent_connected(domain_of(*channels)) is connected


def test_without_a_channel_no_agent_is_connected() -> None:
    assert not agent_connected(domain_of())
