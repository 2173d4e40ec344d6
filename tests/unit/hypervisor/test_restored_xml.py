"""restored_xml.py: a definition that refers to the restored images, and a copy that shares nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from backup.errors import BackupError
from backup.hypervisor.restored_xml import Redefinition, redefined

from ..paper_cluster import PaperCluster
from ..samples import OTHER_UUID, UUID, image

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


def domain_with(devices: str) -> str:
    return f"<domain><name>x</name><uuid>x</uuid><devices>{devices}</devices></domain>"


def disks(xml: str) -> dict[str, dict[str, str]]:
    found = ElementTree.fromstring(xml).findall("./devices/disk")
    return {disk.find("target").get("dev"): source_of(disk) for disk in found}  # type: ignore


def source_of(disk: ElementTree.Element) -> dict[str, str]:
    source = disk.find("source")
    return {} if source is None else dict(source.attrib)


def test_a_restored_domain_differs_only_in_its_images() -> None:
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
    assert domain.findtext("genid") == "", "the guest is informed that it went back in time"


def test_a_copy_shares_nothing_with_the_original() -> None:
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


def test_an_isolated_copy_has_no_outside_access() -> None:
    xml, _ = redefined(XML, change(copy=True, isolated=True))
    assert ElementTree.fromstring(xml).find("./devices/interface") is None


OTHERS = [("10.9.9.1", "6789"), ("fd00::1", "6790")]
MSGR2_ALONE = [("10.0.0.1", "3300"), ("fd00::1", "3300")]


@pytest.mark.parametrize(
    ("inside", "monitors", "kept"),
    [
        ("<host name='10.0.0.1'/><host name='gone'/><config file='/etc/ceph/a.conf'/>", MONITORS, True),
        ("<host name='fd00::1' port='6789'/>", OTHERS, True),
        ("<host name='FD00:0::1' port='6789'/>", OTHERS, True),
        ("<host name='[fd00::1]' port='6789'/>", OTHERS, False),
        ("<host name='fd00:0::1' port='3300'/>", MSGR2_ALONE, True),
        ("<host name='10.0.0.1' port='6789'/>", MSGR2_ALONE, False),
        ("<host name='10.0.0.1'/>", MSGR2_ALONE, False),
        ("<host name='10.0.0.1' port='6789'/>", OTHERS, False),
        ("<host name='10.0.0.1'/><config file='/etc/ceph/a.conf'/>", OTHERS, False),
        ("<config file='/etc/ceph/a.conf'/>", MONITORS, False),
        ("", MONITORS, False),
    ],
)
def test_a_disk_refers_to_the_cluster_of_its_restored_image(
    inside: str, monitors: list[tuple[str, str]], kept: bool
) -> None:
    before = f"<source protocol='rbd' name='a/b'>{inside}</source>"
    disk = f"<disk type='network'>{before}<target dev='vda'/></disk>"
    xml, _ = redefined(domain_with(disk), change(images={"vda": image("a/b")}, monitors=monitors))
    source = ElementTree.fromstring(xml).find("./devices/disk/source")
    assert source is not None
    if kept:
        assert ElementTree.tostring(source) == ElementTree.tostring(ElementTree.fromstring(before))
    else:
        assert [(one.tag, one.get("name"), one.get("port")) for one in source] == [
            ("host", *monitor) for monitor in monitors
        ]


def test_monitors_have_libvirt_s_notation(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = PaperCluster()
    addresses = ("10.9.9.1:6789/0", "[fd00::1]:6790/0")
    dump = {"mons": [{"public_addr": address} for address in addresses]}
    monkeypatch.setattr(cluster, "ask", lambda _: dump)
    assert cluster.monitors() == OTHERS


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ({"v2": "10.0.0.1:3300"}, ("10.0.0.1", "3300")),
        ({"v2": "[fd00::1]:3300"}, ("fd00::1", "3300")),
        ({"v2": "10.0.0.1:3300", "v1": "10.0.0.1:6789"}, ("10.0.0.1", "6789")),
        ({"v1": "[fd00::1]:6789"}, ("fd00::1", "6789")),
    ],
)
def test_a_monitor_that_speaks_msgr2_alone_is_given_with_its_port(
    addresses: dict[str, str], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = [{"type": kind, "addr": address, "nonce": 0} for kind, address in addresses.items()]
    public = f"{addresses.get('v1', ':')}/0"
    dump = {"mons": [{"public_addrs": {"addrvec": vector}, "public_addr": public}]}
    cluster = PaperCluster()
    monkeypatch.setattr(cluster, "ask", lambda _: dump)
    assert cluster.monitors() == [expected]


def test_a_layer_refers_to_its_restored_image() -> None:
    disk = """<disk type='network' device='disk'><source protocol='rbd' name='a/top'/>
    <backingStore type='network'><source protocol='rbd' name='a/base'/></backingStore>
    <target dev='vda'/></disk>"""
    images = {"vda": image("b/top"), "vda.backing1": image("b/base")}
    domain = ElementTree.fromstring(redefined(domain_with(disk), change(images=images))[0])
    assert [one.get("name") for one in domain.iter("source")] == ["b/top", "b/base"]


def test_a_volume_becomes_a_network_disk() -> None:
    disk = "<disk type='volume' device='disk'><source pool='p' volume='data'/><target dev='vda'/></disk>"
    domain = ElementTree.fromstring(redefined(domain_with(disk), change())[0])
    (disk_after,) = domain.findall("./devices/disk")
    assert (disk_after.get("type"), source_of(disk_after)) == (
        "network",
        {"protocol": "rbd", "name": "scratch/web-root"},
    )
    assert len(disk_after.findall("./source/host")) == len(MONITORS)


@pytest.mark.parametrize("copy", [False, True])
def test_disks_that_share_an_image_still_share_it(copy: bool) -> None:
    def disk(target: str, inside: str = "<host name='a'/>") -> str:
        source = f"<source protocol='rbd' name='vms/web-root'>{inside}</source>"
        return f"<disk type='network' device='disk'>{source}<target dev='{target}'/></disk>"

    elsewhere = disk("vdc", "<host name='b'/>") + disk("vdd", "<host name='a'/><snapshot name='s'/>")
    xml = domain_with(disk("vda") + disk("vdb") + elsewhere)
    after, left_out = redefined(xml, change(copy, images={"vda": image("scratch/web-root")}))
    names = {target: source["name"] for target, source in disks(after).items()}
    both = {"vda": "scratch/web-root", "vdb": "scratch/web-root"}
    others = {"vdc": "vms/web-root", "vdd": "vms/web-root"}
    assert names == (both if copy else {**both, **others})
    assert len(left_out) == (2 if copy else 0)


def test_a_mapped_device_cannot_refer_to_another_image() -> None:
    xml = domain_with("<disk type='block'><source dev='/dev/rbd/vms/a'/><target dev='vda'/></disk>")
    redefined(xml, change(images={"vda": image("vms/a")}))
    with pytest.raises(BackupError, match="kernel's device /dev/rbd/vms/a, which cannot refer to vms/b"):
        redefined(xml, change(images={"vda": image("vms/b")}))


FIRMWARE = """<domain><name>web</name><uuid>{uuid}</uuid><os>{os}</os><devices>{devices}</devices></domain>"""
ON_RBD = "<nvram type='network'><source protocol='rbd' name='vms/web-vars'/></nvram>"


def test_nvram_on_rbd_refers_to_its_restored_image() -> None:
    xml = FIRMWARE.format(uuid=UUID, os=ON_RBD, devices="")
    restored, _ = redefined(xml, change(images={"nvram": image("scratch/web-vars")}))
    source = ElementTree.fromstring(restored).find("./os/nvram/source")
    assert source is not None
    assert (source.get("name"), source.find("host") is not None) == ("scratch/web-vars", True)
    restored, left_out = redefined(xml, change(copy=True, images={}))
    assert ElementTree.fromstring(restored).find("./os/nvram") is None
    assert left_out == ["nvram, which was not restored"]
    restored, left_out = redefined(xml, change(images={}))
    assert ("vms/web-vars" in restored, left_out) == (True, [])


def test_a_copy_has_a_varstore_and_a_tpm_of_its_own() -> None:
    tpm = (
        "<tpm><backend type='emulator' persistent_state='yes'><source type='dir' path='{}'/></backend></tpm>"
    )
    store = "<varstore template='/usr/vars.json' path='/srv/varstore/web.json'/>"
    places = {f"/srv/{UUID}/tpm2": f"/srv/{OTHER_UUID}/tpm2", "/srv/tpms/web": "/srv/tpms/two_TPM"}
    for place, copied in places.items():
        xml = FIRMWARE.format(uuid=UUID, os=store, devices=tpm.format(place))
        two = change(copy=True, name="two", uuid=OTHER_UUID, images={}, isolated=True)
        domain = ElementTree.fromstring(redefined(xml, two)[0])
        assert (found := domain.find("./os/varstore")) is not None
        assert (found.get("path"), found.get("template")) == ("/srv/varstore/two.json", "/usr/vars.json")
        assert (found := domain.find("./devices/tpm/backend")) is not None
        assert found.get("persistent_state") is None, "libvirt removes a drill's state"
        assert (found := found.find("source")) is not None
        assert found.get("path") == copied
