"""instant_xml.py: a domain whose disks are overlays, in RBD images, over what a server has."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping

import pytest

from backup.errors import ConfigError
from backup.hypervisor.instant_xml import destination, on_overlays, require_movable, unplugged

from ..samples import image

SOURCE = "<source protocol='rbd' name='{}'><host name='10.0.0.1' port='6789'/></source>"
AUTH = "<auth username='x'><secret type='ceph' usage='y'/></auth>"
SOCKET = "/images/x/nbd"


def disk(target: str, name: str, inside: str = "", attributes: str = "type='network' device='disk'") -> str:
    return f"<disk {attributes}>{inside}{SOURCE.format(name)}<target dev='{target}' bus='virtio'/></disk>"


def domain(*devices: str) -> str:
    return f"<domain><name>web</name><uuid>x</uuid><devices>{''.join(devices)}</devices></domain>"


def test_a_disk_is_an_overlay_beside_its_image_and_pauses_the_guest_where_it_cannot_read() -> None:
    driver = "<driver name='qemu' type='raw' cache='none' queues='2' copy_on_read='on'/>"
    xml = domain(disk("vda", "vms/ns/a", driver + AUTH), disk("vdb", "vms/b"))
    found, other = ElementTree.fromstring(on_overlays(xml, {"vda": "vda"}, SOCKET)).findall("devices/disk")
    expected = {"name": "qemu", "type": "qcow2", "cache": "none", "queues": "2", "discard": "unmap"}
    expected.update(detect_zeroes="unmap", error_policy="stop", rerror_policy="stop")
    assert dict(found.findall("driver")[0].attrib) == expected
    assert found.findall("source")[0].get("name") == "vms/ns/a.virt-rbd-backup.overlay"
    assert found.find("source/host") is not None, "it is in the same cluster"
    assert found.find("auth/secret") is not None
    store = found.findall("backingStore")[0]
    assert (store.get("type"), store.findall("format")[0].get("type")) == ("network", "raw")
    assert dict(store.findall("source")[0].attrib) == {"protocol": "nbd", "name": "vda"}
    assert dict(store.findall("source/host")[0].attrib) == {"transport": "unix", "socket": SOCKET}
    assert store.find("backingStore") is not None, "no header is asked for what is below"
    assert other.findall("source")[0].get("name") == "vms/b"


def test_what_the_guest_flushes_is_flushed_whatever_its_definition_has() -> None:
    xml = on_overlays(domain(disk("vda", "vms/a", "<driver cache='unsafe'/>")), {"vda": "vda"}, SOCKET)
    assert 'cache="writeback"' in xml


def test_the_destination_of_a_copy_is_the_restored_image_and_stays_thin() -> None:
    found = ElementTree.fromstring(destination(domain(disk("vda", "vms/a", AUTH)), "vda"))
    assert found.findall("source")[0].get("name") == "vms/a"
    assert dict(found.findall("driver")[0].attrib) == {"name": "qemu", "type": "raw", "discard": "unmap"}


REFUSED: Mapping[str, str] = {
    "is encrypted by its host, and so is what the restore point has of it": disk(
        "vda", "vms/a", "<encryption format='luks2'/>"
    ),
    "is no disk that QEMU opens by itself, but a device of the node": (
        "<disk type='block'><source dev='/dev/rbd/vms/a'/><target dev='vda'/></disk>"
    ),
    "is a cdrom": disk("vda", "vms/a", attributes="type='network' device='cdrom'"),
    "has a backing chain": disk(
        "vda", "vms/a", f"<backingStore type='network'>{SOURCE.format('vms/base')}</backingStore>"
    ),
    "has a format of its own": disk("vda", "vms/a", "<driver type='qcow2'/>"),
    "is shared with other domains": disk("vda", "vms/a", "<shareable/>"),
    "is read-only": disk("vda", "vms/a", "<readonly/>"),
    "is no disk of its own, but a layer of one, or NVRAM": disk("vdb", "vms/a"),
    "is the image of several disks": disk("vda", "vms/a") + disk("vdb", "vms/a"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_disk_that_cannot_be_moved_is_refused_with_the_reason(reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_movable(domain(REFUSED[reason]), {"vda": image("vms/a")})
    assert [(one.message, one.hint) for one in caught.value.errors] == [
        (f"vda (vms/a) {reason}", "restore it without --instant")
    ]


def test_encryption_that_librbd_has_the_key_of_is_refused_too() -> None:
    source = SOURCE.format("vms/a").replace("</source>", "<encryption format='luks'/></source>")
    xml = domain(f"<disk type='network'>{source}<target dev='vda'/></disk>")
    with pytest.raises(ConfigError, match="encrypted by its host"):
        require_movable(xml, {"vda": image("vms/a")})


def test_a_plain_disk_is_not_refused_and_a_restore_point_without_any_is() -> None:
    require_movable(domain(disk("vda", "vms/a")), {"vda": image("vms/a")})
    with pytest.raises(ConfigError, match="no image of a disk"):
        require_movable(domain(disk("vda", "vms/a")), {})


def test_without_a_network_links_are_down_and_what_has_no_link_is_left_out() -> None:
    mac = "<mac address='52:54:00:00:00:01'/>"
    bridge = f"<interface type='bridge'>{mac}<source bridge='br0'/><link state='up'/></interface>"
    xml, left_out = unplugged(domain(bridge, f"<interface type='hostdev'>{mac}</interface>"))
    (found,) = ElementTree.fromstring(xml).findall("devices/interface")
    assert [one.attrib for one in found.findall("link")] == [{"state": "down"}]
    assert found.find("source") is not None
    assert left_out == ["its hostdev network interface 52:54:00:00:00:01"]
