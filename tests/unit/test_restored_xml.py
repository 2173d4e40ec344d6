"""backup/restored_xml.py: a definition that leads to the restored images, and a copy that shares nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from backup.errors import BackupError
from backup.restored_xml import Redefinition, redefined

from .samples import OTHER_UUID, UUID, image

XML = f"""
<domain type='kvm'>
  <name>web</name><uuid>{UUID}</uuid><genid>11111111-1111-1111-1111-111111111111</genid>
  <sysinfo type='smbios'><system><entry name='uuid'>{UUID}</entry></system></sysinfo>
  <os><nvram>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram></os>
  <devices>
    <disk type='network' device='disk'>
      <source protocol='rbd' name='vms/web-root'><host name='10.0.0.1' port='6789'/></source>
      <target dev='vda'/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='rbd' name='vms/web-data'/><target dev='vdb'/>
    </disk>
    <disk type='file' device='disk'><source file='/srv/x.img'/><target dev='vdc'/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/></disk>
    <serial type='file'><source path='/var/log/web.log'/></serial>
    <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/></interface>
  </devices>
</domain>"""
MONITORS = [("10.0.0.1", "6789"), ("10.0.0.2", "6789")]
BOTH = {"vda": image("scratch/web-root"), "vdb": image("scratch/web-data")}


def change(copy: bool = False, **changes: object) -> Redefinition:
    values = {"name": "web", "uuid": UUID, "images": BOTH, "monitors": MONITORS, "copy": copy, **changes}
    return Redefinition(**values)  # type: ignore[arg-type]


def disks(xml: str) -> dict[str, dict[str, str]]:
    found = ElementTree.fromstring(xml).findall("./devices/disk")
    return {disk.find("target").get("dev"): source_of(disk) for disk in found}  # type: ignore


def source_of(disk: ElementTree.Element) -> dict[str, str]:
    source = disk.find("source")
    return {} if source is None else dict(source.attrib)


def test_a_domain_is_as_it_was_but_on_its_restored_images() -> None:
    xml, left_out = redefined(XML, change())
    assert left_out == []
    assert {target: source.get("name", "") for target, source in disks(xml).items()} == {
        "vda": "scratch/web-root",
        "vdb": "scratch/web-data",
        "vdc": "",
        "sda": "",
    }
    domain = ElementTree.fromstring(xml)
    assert domain.findtext("uuid") == UUID
    assert domain.find("./devices/interface/mac") is not None
    assert domain.findtext("./os/nvram") == "/var/lib/libvirt/qemu/nvram/web_VARS.fd"
    assert domain.findtext("genid") == "", "the guest is told that it went back in time"


def test_a_copy_has_no_part_in_what_belongs_to_the_other() -> None:
    images = {"vda": image("vms/web-root-copy")}
    xml, left_out = redefined(XML, change(copy=True, name="two", uuid=OTHER_UUID, images=images))
    assert left_out == ["vdb, which was not restored", "vdc, which was not restored"]
    assert set(disks(xml)) == {"vda", "sda"}
    domain = ElementTree.fromstring(xml)
    assert (domain.findtext("name"), domain.findtext("uuid")) == ("two", OTHER_UUID)
    assert domain.findtext("./sysinfo/system/entry") == OTHER_UUID
    assert domain.find("./devices/interface/mac") is None
    assert domain.findtext("./os/nvram") == "/var/lib/libvirt/qemu/nvram/two_VARS.fd"
    assert domain.find("./devices/serial/source") is None
    assert domain.find("./devices/interface/source") is not None


def test_an_isolated_one_reaches_nobody() -> None:
    xml, _ = redefined(XML, change(copy=True, isolated=True))
    assert ElementTree.fromstring(xml).find("./devices/interface") is None


@pytest.mark.parametrize(
    ("monitors", "named"),
    [(MONITORS, ["10.0.0.1"]), ([("10.9.9.1", "6789"), ("10.9.9.2", "6790")], ["10.9.9.1", "10.9.9.2"])],
)
def test_the_monitors_are_those_of_the_cluster_that_the_images_are_in(
    monitors: list[tuple[str, str]], named: list[str]
) -> None:
    xml, _ = redefined(XML, change(monitors=monitors))
    hosts = ElementTree.fromstring(xml).findall("./devices/disk/source/host")
    assert sorted(host.get("name", "") for host in hosts) == named


def test_a_layer_and_a_volume_are_pointed_at_their_images() -> None:
    disk = """<disk type='network' device='disk'><source protocol='rbd' name='a/top'/>
    <backingStore type='network'><source protocol='rbd' name='a/base'/></backingStore>
    <target dev='vda'/></disk>
    <disk type='volume' device='disk'><source pool='p' volume='data'/><target dev='vdb'/></disk>"""
    xml = f"<domain><name>x</name><uuid>x</uuid><devices>{disk}</devices></domain>"
    images = {"vda": image("b/top"), "vda.backing1": image("b/base"), "vdb": image("a/data-2")}
    domain = ElementTree.fromstring(redefined(xml, change(images=images))[0])
    assert [one.get("name") for one in domain.iter("source")][:2] == ["b/top", "b/base"]
    assert disks(redefined(xml, change(images=images))[0])["vdb"] == {"pool": "p", "volume": "data-2"}


def test_a_kernel_device_can_not_lead_to_another_image() -> None:
    disk = "<disk type='block'><source dev='/dev/rbd/vms/a'/><target dev='vda'/></disk>"
    xml = f"<domain><name>x</name><uuid>x</uuid><devices>{disk}</devices></domain>"
    redefined(xml, change(images={"vda": image("vms/a")}))
    with pytest.raises(BackupError, match="kernel's device /dev/rbd/vms/a, which can't lead to vms/b"):
        redefined(xml, change(images={"vda": image("vms/b")}))
