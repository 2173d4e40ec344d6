"""backup/hypervisor/disk_xml.py: RBD images behind disks, and the addresses of their clusters."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from backup.hypervisor.disk_xml import Places, layers, nvram_disk
from backup.hypervisor.mapped_device import MappedImage
from backup.model import ClusterAddress, Disk, Gap, Image

from ..disk_elements import AUTH, HOSTS, PLACES, SECRET_UUID, backing, only, other, rbd
from ..samples import FSID


def disk_of(element: str) -> Disk:
    """Read a <disk> without a backing chain."""
    return only(layers(ElementTree.fromstring(element), PLACES))


def test_a_disk_has_a_target_an_image_and_the_address_of_its_cluster() -> None:
    assert disk_of(rbd("vms/root", HOSTS + AUTH + "<config file='/etc/ceph/b.conf'/>")) == Disk(
        target="vda",
        source="vms/root",
        image=Image("vms", "root"),
        address=ClusterAddress(
            monitors=("ceph1:6789", "[2001:db8::1]:3300", "[::2]"),
            user="libvirt",
            secret_uuid=SECRET_UUID,
            conf_file="/etc/ceph/b.conf",
        ),
    )


def test_a_disk_without_hosts_and_auth_uses_ceph_conf() -> None:
    assert disk_of(rbd()).address == ClusterAddress()


@pytest.mark.parametrize(
    ("host", "monitor"),
    [
        ("<host name='ceph1'/>", "ceph1"),
        ("<host name='192.0.2.1' port='3300'/>", "192.0.2.1:3300"),
        ("<host name='2001:db8::1'/>", "[2001:db8::1]"),
        ("<host name='[2001:db8::1]' port='6789'/>", "[2001:db8::1]:6789"),
    ],
)
def test_monitor_addresses_have_ceph_s_notation(host: str, monitor: str) -> None:
    assert disk_of(rbd(inside=host)).address.monitors == (monitor,)


def test_a_host_without_a_name_is_not_a_monitor() -> None:
    hosts = "<host transport='unix' socket='/run/x'/><host name='ceph1'/>"
    assert disk_of(rbd(inside=hosts)).address.monitors == ("ceph1",)


def test_a_secret_can_be_named_by_its_usage_too() -> None:
    auth = "<auth username='libvirt'><secret type='ceph' usage='client.libvirt secret'/></auth>"
    address = disk_of(rbd(inside=auth)).address
    assert (address.user, address.secret_uuid, address.secret_usage) == (
        "libvirt",
        "",
        "client.libvirt secret",
    )


def test_a_user_without_a_secret_has_no_libvirt_key() -> None:
    assert disk_of(rbd(inside="<auth username='backup'/>")).address == ClusterAddress(user="backup")


def test_auth_beside_the_source_as_in_older_definitions_is_used() -> None:
    assert disk_of(rbd(beside=AUTH)).address == ClusterAddress(user="libvirt", secret_uuid=SECRET_UUID)


def test_auth_in_the_source_takes_precedence_over_one_beside_it() -> None:
    assert disk_of(rbd(inside="<auth username='newer'/>", beside=AUTH)).address.user == "newer"


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("vms/tenant-a/root", Image("vms", "root", namespace="tenant-a")),
        ("my pool/web root.v2+new", Image("my pool", "web root.v2+new")),
        ("vms/größe-磁盘", Image("vms", "größe-磁盘")),
        ("vms/a&amp;b&lt;c&gt;&quot;d&quot;'e'", Image("vms", "a&b<c>\"d\"'e'")),
        ("vms/--delete", Image("vms", "--delete")),
    ],
)
def test_image_names_of_any_kind_are_taken_literally(name: str, image: Image) -> None:
    disk = disk_of(rbd(name))
    assert disk.image == image
    assert disk.source == str(image)


@pytest.mark.parametrize("name", ["root", "vms/", "/root", "a/b/c/d", "vms//root", "vms/ns/", ""])
def test_a_disk_with_an_invalid_image_name_is_skipped(name: str) -> None:
    disk = disk_of(rbd(name))
    assert (disk.image, disk.skipped, disk.gap) == (
        None,
        f"invalid image name {name!r}, expected pool/image",
        Gap.BROKEN,
    )
    assert disk.source == name


def test_a_snapshot_never_changes_and_is_skipped() -> None:
    assert disk_of(rbd("vms/root", "<snapshot name='golden'/>")) == Disk(
        "vda", "vms/root", skipped="runs from snapshot golden, which never changes", gap=Gap.NONE
    )


@pytest.mark.parametrize("kind", ["<readonly/>", "<shareable/>", "<transient/>"])
def test_a_disk_is_backed_up_however_the_domain_uses_it(kind: str) -> None:
    assert disk_of(rbd(beside=kind)) == disk_of(rbd())
    assert not disk_of(rbd()).shared
    assert disk_of(rbd(beside=kind)).shared == (kind != "<transient/>")


@pytest.mark.parametrize(
    "disk", [rbd(device="lun"), rbd().replace(" device='disk'", "")], ids=["lun", "no device"]
)
def test_a_disk_may_be_a_lun_or_have_no_device_attribute(disk: str) -> None:
    assert disk_of(disk) == disk_of(rbd())


ENCRYPTION = f"<encryption format='luks2'><secret type='passphrase' uuid='{SECRET_UUID}'/></encryption>"


@pytest.mark.parametrize("disk", [rbd(inside=ENCRYPTION), rbd(beside=ENCRYPTION)], ids=["source", "disk"])
def test_an_encrypted_image_is_saved_encrypted_with_its_format(disk: str) -> None:
    assert disk_of(disk) == Disk("vda", "vms/root", Image("vms", "root"), encryption="luks2")


def test_encryption_in_the_source_takes_precedence_over_one_beside_it() -> None:
    assert disk_of(rbd(inside=ENCRYPTION, beside="<encryption format='qcow'/>")).encryption == "luks2"


def test_the_target_of_a_running_block_copy_is_not_the_disk_s_image() -> None:
    mirror = "<mirror type='network' job='copy'><source protocol='rbd' name='ssd/copy'/></mirror>"
    assert disk_of(rbd(beside=mirror)) == disk_of(rbd())


def test_a_volume_of_an_rbd_pool_has_the_address_of_its_pool() -> None:
    assert disk_of(other("volume", "<source pool='ceph volumes' volume='web root'/>")) == Disk(
        "vda",
        "web root",
        Image("vms", "web root"),
        ClusterAddress(("ceph1:6789", "[2001:db8::1]"), "libvirt", SECRET_UUID),
    )


def test_a_volume_of_an_rbd_pool_without_an_address_uses_ceph_conf() -> None:
    disk = disk_of(other("volume", "<source pool='bare' volume='root'/>"))
    assert (disk.image, disk.address) == (Image("ssd", "root"), ClusterAddress())


def test_a_volume_can_be_encrypted_too() -> None:
    disk = disk_of(other("volume", f"<source pool='bare' volume='root'>{ENCRYPTION}</source>"))
    assert (str(disk.image), disk.encryption) == ("ssd/root", "luks2")


def test_a_volume_of_an_unknown_pool_cannot_be_backed_up() -> None:
    assert disk_of(other("volume", "<source pool='gone' volume='root'/>")) == Disk(
        "vda", "root", skipped="cannot look up libvirt's storage pool gone: not found", gap=Gap.BROKEN
    )


def test_the_image_of_a_mapped_device_must_be_in_the_kernel_s_cluster() -> None:
    disk = disk_of(other("block", "<source dev='/dev/rbd7'/>"))
    assert disk == Disk("vda", "/dev/rbd7", Image("vms", "root", "tenant"), address=ClusterAddress(fsid=FSID))
    assert disk.image is not None
    assert disk.image.id == "1f2e"


def test_a_mapped_snapshot_never_changes_and_is_skipped() -> None:
    disk = disk_of(other("block", "<source dev='/dev/rbd/vms/golden@first'/>"))
    assert (disk.image, disk.gap) == (None, Gap.NONE)
    assert disk.skipped == "runs from snapshot first, which never changes"


def test_a_device_without_a_known_image_cannot_be_backed_up() -> None:
    assert disk_of(other("block", "<source dev='/dev/rbd7p1'/>")) == Disk(
        "vda", "/dev/rbd7p1", skipped="a partition of an RBD image", gap=Gap.BROKEN
    )


def device(path: str, read_only: bool | None) -> Disk:
    mapped = MappedImage(Image("vms", "root"), fsid=FSID, device="/dev/rbd7", read_only=read_only)
    places = Places(PLACES.pool_xml, lambda _: mapped)
    return only(layers(ElementTree.fromstring(other("block", f"<source dev='{path}'/>")), places))


def test_qemu_has_an_image_open_for_each_disk_but_has_to_only_where_the_guest_writes() -> None:
    """It opens every image as a writer (block/rbd.c), which may change for those that are only read."""
    volume = other("volume", "<source pool='ceph volumes' volume='root'/>")
    for element in (rbd(), rbd(beside="<shareable/>"), volume):
        assert (disk_of(element).client, disk_of(element).written) == ("vda", True)
    read = disk_of(rbd(beside="<readonly/>"))
    assert (read.client, read.written) == ("vda", False)
    below = backing("network", "<source protocol='rbd' name='vms/base'/>")
    top, layer = layers(ElementTree.fromstring(rbd(beside=below)), PLACES)
    assert [(one.client, one.written) for one in (top, layer)] == [("vda", True), ("vda.backing1", False)]
    nvram = ElementTree.fromstring("<nvram type='network'><source protocol='rbd' name='vms/vars'/></nvram>")
    found = nvram_disk(nvram, PLACES)
    assert found
    assert (found.client, found.written) == ("nvram", True)


def test_the_kernel_has_the_image_of_a_mapped_device_open_once_and_not_if_it_only_reads() -> None:
    assert (device("/dev/rbd7", False).client, device("/dev/rbd7", False).written) == ("/dev/rbd7", True)
    assert (device("/dev/link", None).client, device("/dev/link", None).written) == ("/dev/rbd7", False)
    assert (device("/dev/rbd7", True).client, device("/dev/rbd7", True).written) == ("", False)
