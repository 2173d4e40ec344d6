"""backup/domain_xml.py: what stands in a domain's XML."""

from __future__ import annotations

import pytest

from backup.domain_xml import agent_connected, disks, nvram_path
from backup.model import ClusterAddress, Disk, Image

from .raising import raises

HOSTS = "<host name='ceph1' port='6789'/><host name='2001:db8::1' port='3300'/><host name='[::2]'/>"
SECRET_UUID = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
AUTH = f"<auth username='libvirt'><secret type='ceph' uuid='{SECRET_UUID}'/></auth>"


def domain_of(*elements: str) -> str:
    return f"<domain type='kvm'><name>web</name><devices>{''.join(elements)}</devices></domain>"


def rbd(name: str = "vms/root", inside: str = "", beside: str = "", device: str = "disk") -> str:
    source = f'<source protocol="rbd" name="{name}">{inside}</source>'
    return f"<disk type='network' device='{device}'>{source}<target dev='vda' bus='virtio'/>{beside}</disk>"


def disk_of(*elements: str) -> Disk:
    (disk,) = disks(domain_of(*elements))
    return disk


def test_a_disk_says_its_target_its_image_and_how_its_cluster_is_reached() -> None:
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


def test_a_disk_without_hosts_and_auth_leaves_it_to_the_ceph_conf() -> None:
    assert disk_of(rbd()).address == ClusterAddress()


def test_a_secret_can_be_named_by_its_usage_too() -> None:
    auth = "<auth username='libvirt'><secret type='ceph' usage='client.libvirt secret'/></auth>"
    address = disk_of(rbd(inside=auth)).address
    assert (address.secret_uuid, address.secret_usage) == ("", "client.libvirt secret")


def test_auth_beside_the_source_as_older_definitions_have_it_counts() -> None:
    assert disk_of(rbd(beside=AUTH)).address.secret_uuid == SECRET_UUID


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


@pytest.mark.parametrize("name", ["root", "vms/", "/root", "a/b/c/d", "vms//root", ""])
def test_a_source_that_is_no_image_s_name_is_not_covered(name: str) -> None:
    disk = disk_of(rbd(name))
    assert (disk.image, disk.not_covered) == (None, f"{name!r} is no pool/image")


NOT_COVERED = {
    "<disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>": "cdrom without a medium",
    "<disk type='file' device='floppy'><target dev='fda'/></disk>": "floppy without a medium",
    "<disk type='file'><source file='/srv/x.qcow2'/><target dev='vdb'/></disk>": "no RBD image (file)",
    "<disk type='block'><source dev='/dev/vg/x'/><target dev='vdb'/></disk>": "no RBD image (block)",
    "<disk type='volume'><source pool='p' volume='v'/><target dev='vdb'/></disk>": "no RBD image (volume)",
    "<disk type='network'><source protocol='nbd' name='x'/><target dev='vdb'/></disk>": "no RBD image (nbd)",
    rbd(device="cdrom"): "a cdrom",
    rbd(beside="<readonly/>"): "read-only",
    rbd(inside="<snapshot name='golden'/>"): "runs from a snapshot, which never changes",
}


@pytest.mark.parametrize("element", NOT_COVERED)
def test_what_is_no_writable_rbd_image_says_why_it_is_not_covered(element: str) -> None:
    disk = disk_of(element)
    assert (disk.image, disk.not_covered) == (None, NOT_COVERED[element])


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("type='file'><source file='/srv/x'/>", "/srv/x"),
        ("type='block'><source dev='/dev/x'/>", "/dev/x"),
        ("type='volume'><source pool='p' volume='v'/>", "v"),
        ("type='nvme'><source type='pci' namespace='1'/>", "nvme"),
    ],
)
def test_a_disk_that_is_not_covered_is_shown_by_what_an_admin_knows_it_by(source: str, shown: str) -> None:
    assert disk_of(f"<disk {source}<target dev='vdb'/></disk>").source == shown


def test_all_disks_are_found_in_their_order() -> None:
    found = disks(domain_of(rbd("vms/a"), *NOT_COVERED, rbd("vms/b")))
    assert len(found) == 2 + len(NOT_COVERED)
    assert [str(disk.image) for disk in found if disk.image] == ["vms/a", "vms/b"]


NVRAM = {
    "<nvram>/var/lib/nvram/web.fd</nvram>": "/var/lib/nvram/web.fd",
    "<nvram template='/usr/share/OVMF_VARS.fd'>\n  /var/lib/web.fd\n</nvram>": "/var/lib/web.fd",
    "<nvram type='file'><source file='/srv/nvram/web.fd'/></nvram>": "/srv/nvram/web.fd",
    "<nvram template='/usr/share/OVMF_VARS.fd'/>": "",
    "": "",
}


@pytest.mark.parametrize("element", NVRAM)
def test_the_nvram_s_path_is_found_in_each_notation(element: str) -> None:
    assert nvram_path(f"<domain><os><type>hvm</type>{element}</os></domain>") == NVRAM[element]


def test_an_nvram_that_is_no_file_is_refused_as_it_could_not_be_saved() -> None:
    nvram = "<nvram type='block'><source dev='/dev/vg/nvram'/></nvram>"
    with raises("the domain's NVRAM is no file (block), and can't be saved"):
        nvram_path(f"<domain><os><type>hvm</type>{nvram}</os></domain>")


@pytest.mark.parametrize(
    ("target", "connected"),
    [
        ("name='org.qemu.guest_agent.0' state='connected'", True),
        ("name='org.qemu.guest_agent.0' state='disconnected'", False),
        ("name='org.qemu.guest_agent.0'", False),
        ("name='com.redhat.spice.0' state='connected'", False),
    ],
)
def test_an_agent_counts_as_connected_only_when_its_own_channel_says_so(target: str, connected: bool) -> None:
    channels = (
        "<channel type='spicevmc'/>",
        f"<channel type='unix'><target type='virtio' {target}/></channel>",
    )
    assert agent_connected(domain_of(*channels)) is connected


def test_without_a_channel_no_agent_is_connected() -> None:
    assert not agent_connected(domain_of())
