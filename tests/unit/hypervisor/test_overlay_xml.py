"""overlay_xml.py: a copy whose disks are overlays over what a server on this node has."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from xml.etree.ElementTree import Element

import pytest

from backup.errors import NotDrillable
from backup.hypervisor.overlay_xml import Export, Overlay, overlays, qcow2_exports
from backup.hypervisor.restored_xml import Redefinition, redefined

from ..raising import raises
from ..samples import OTHER_UUID

SOCKET, DIRECTORY = "/images/x/nbd", "/images/x"
SOURCE = "<source protocol='rbd' name='{}'><host name='10.0.0.1' port='6789'/></source>"


def disk(target: str, image: str, inside: str = "", attributes: str = "device='disk'") -> str:
    return (
        f"<disk type='network' {attributes}>{SOURCE.format(image)}"
        f"<target dev='{target}' bus='virtio'/>{inside}</disk>"
    )


def changed(devices: str, *targets: str, system: str = "") -> tuple[Element, Sequence[str], str]:
    """Return the isolated copy with exports of these disks, what it lacks, and it as a text."""
    exports = {target: Export(target, SOCKET, DIRECTORY) for target in targets}
    change = Redefinition("web-drill", OTHER_UUID, True, {}, [], True, exports)
    xml = f"<domain><name>web</name><uuid>x</uuid><os>{system}</os><devices>{devices}</devices></domain>"
    text, left_out = redefined(xml, change)
    return ElementTree.fromstring(text), left_out, text


def test_each_disk_is_an_overlay_of_its_own_over_its_export_and_nothing_refers_to_the_cluster() -> None:
    auth = "<auth username='x'><secret type='ceph' usage='y'/></auth><serial>A1</serial><boot order='1'/>"
    driver = "<driver name='qemu' type='raw' cache='none' io='native' discard='unmap' queues='2'/>"
    domain, left_out, text = changed(
        disk("vda", "vms/a", driver + auth) + disk("vdb", "vms/b") + disk("vdc", "vms/c"), "vda", "vdb"
    )
    assert left_out == ["vdc, which was not restored"]
    assert overlays(text) == [
        Overlay("/images/x/vda.qcow2", "vda", "raw"),
        Overlay("/images/x/vdb.qcow2", "vdb", "raw"),
    ]
    first, second = domain.findall("./devices/disk")
    found = first.find("driver")
    assert found is not None
    assert found.attrib == {
        "name": "qemu",
        "type": "qcow2",
        "cache": "unsafe",
        "discard": "unmap",
        "queues": "2",
        "error_policy": "stop",
        "rerror_policy": "stop",
    }
    assert (first.findtext("serial"), first.find("auth"), first.get("type")) == ("A1", None, "file")
    host = second.find("backingStore/source/host")
    assert host is not None
    assert host.attrib == {"transport": "unix", "socket": SOCKET}
    assert second.find("backingStore/backingStore") is not None, "no header is asked for what is below"
    for original in ('"rbd"', "10.0.0.1", "ceph"):
        assert original not in text


def test_the_layers_of_an_overlay_on_rbd_stay_below_it_in_order() -> None:
    below = (
        "<driver name='qemu' type='qcow2'/><backingStore type='network'><format type='raw'/>"
        f"{SOURCE.format('vms/base')}<backingStore/></backingStore>"
    )
    domain, _, text = changed(disk("vda", "vms/top", below), "vda", "vda.backing1")
    assert overlays(text) == [Overlay("/images/x/vda.qcow2", "vda", "qcow2")]
    names = [source.get("name") for source in domain.iter("source") if source.get("protocol") == "nbd"]
    kinds = [one.get("type") for one in domain.iter("format")]
    assert (names, kinds) == (["vda", "vda.backing1"], ["qcow2", "raw"])


def test_disks_that_share_an_image_get_overlays_of_their_own() -> None:
    shared = "<shareable/>"
    domain, _, text = changed(disk("vda", "vms/a", shared) + disk("vdb", "vms/a", shared), "vda")
    assert [one.path for one in overlays(text)] == ["/images/x/vda.qcow2", "/images/x/vdb.qcow2"]
    assert {one.export for one in overlays(text)} == {"vda"}
    assert domain.find("./devices/disk/shareable") is None, "QEMU refuses it for qcow2"


@pytest.mark.parametrize(
    "inside",
    [
        "<encryption format='luks'><secret type='passphrase' uuid='x'/></encryption>",
        "<backingStore/><auth username='x'/><encryption format='luks2' engine='librbd'/>",
    ],
)
def test_an_encrypted_disk_is_refused(inside: str) -> None:
    message = "vda is encrypted by its host, and so is what the restore point has of it"
    with raises(message, NotDrillable):
        changed(disk("vda", "vms/a", inside), "vda")
    source = f"<source protocol='rbd' name='vms/a'>{inside}</source><target dev='vda'/>"
    with raises(message, NotDrillable):
        changed(f"<disk type='network'>{source}</disk>", "vda")


@pytest.mark.parametrize("layers", [1, 2])
def test_a_format_that_may_refer_to_other_files_is_refused(layers: int) -> None:
    message = "vda has the format vmdk, which may refer to other files of this node"
    below = (
        "<driver name='qemu' type='qcow2'/><backingStore type='network'><format type='vmdk'/>"
        f"{SOURCE.format('vms/base')}<backingStore/></backingStore>"
    )
    inside = "<driver name='qemu' type='vmdk'/>" if layers == 1 else below
    with raises(message, NotDrillable):
        changed(disk("vda", "vms/a", inside), "vda", *(["vda.backing1"] if layers == 2 else []))


def test_it_is_known_which_exports_are_qcow2_images() -> None:
    below = (
        "<driver name='qemu' type='raw'/><backingStore type='network'><format type='qcow2'/>"
        f"{SOURCE.format('vms/base')}<backingStore/></backingStore>"
    )
    nvram = f"<nvram type='network'>{SOURCE.format('vms/nvram')}{{}}</nvram>"
    disks = disk("vda", "vms/top", below), "vda", "vda.backing1", "nvram"
    _, _, text = changed(*disks, system=nvram.format("<format type='qcow2'/>"))
    assert set(qcow2_exports(text)) == {"vda.backing1", "nvram"}
    assert set(qcow2_exports(changed(*disks, system=nvram.format(""))[2])) == {"vda.backing1"}


def test_a_disk_that_only_a_device_of_the_host_can_be_is_a_plain_one() -> None:
    device = "<disk type='block' device='lun' sgio='filtered' rawio='yes'><source dev='/dev/rbd/vms/a'/>"
    domain, _, _ = changed(f"{device}<target dev='sda' bus='scsi'/></disk>", "sda")
    (found,) = domain.findall("./devices/disk")
    assert found.attrib == {"type": "file", "device": "disk"}


def test_no_name_leads_an_overlay_out_of_its_directory() -> None:
    _, _, text = changed(disk("../../etc/x", "vms/a"), "../../etc/x")
    assert [one.path for one in overlays(text)] == ["/images/x/.._.._etc_x.qcow2"]


def test_nvram_on_rbd_is_a_copy_in_a_file() -> None:
    nvram = f"<nvram type='network' template='/usr/share/vars.fd'>{SOURCE.format('vms/nvram')}</nvram>"
    domain, left_out, text = changed(disk("vda", "vms/a"), "vda", "nvram", system=nvram)
    found = domain.find("./os/nvram")
    assert found is not None
    source = found.find("source")
    assert source is not None
    assert (found.get("type"), source.attrib) == ("file", {"file": "/images/x/web-drill_VARS.fd"})
    assert left_out == []
    assert '"rbd"' not in text


def test_a_medium_that_was_not_saved_and_an_empty_drive_are_left_empty() -> None:
    drive = "<disk type='file' device='cdrom'>{}<target dev='sda' bus='sata'/></disk>"
    for inside in ("", "<source file='/srv/x.iso'/>"):
        domain, _, text = changed(drive.format(inside), "vda")
        assert overlays(text) == []
        assert domain.find("./devices/disk/source") is None
