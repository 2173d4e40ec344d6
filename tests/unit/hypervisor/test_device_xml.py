"""backup/hypervisor/device_xml.py: what a domain has data in besides its disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from backup.hypervisor.connection import Hypervisor
from backup.hypervisor.domain_xml import disks
from backup.model import Disk, Gap

from ..disk_elements import PLACES, domain_of, rbd
from ..driver_node import SHUT_OFF, domain_element, node_uri

PCI = "<address domain='0x0000' bus='0x06' slot='0x12' function='0x5'/>"
VIRTIOFS = "<driver type='virtiofs'/>"
MDEV = "c2177883-f1bb-47f0-914d-32a22e3a8804"

# The element; its target, what an admin knows it by, and what it is.
DEVICES = [
    (
        f"<filesystem type='mount'>{VIRTIOFS}<source dir='/srv/a'/><target dir='data'/></filesystem>",
        ("filesystem:data", "/srv/a", "virtiofs file system"),
    ),
    (
        f"<filesystem type='mount'>{VIRTIOFS}<source socket='/run/v'/><target dir='a b'/></filesystem>",
        ("filesystem:a_b", "/run/v", "virtiofs file system"),
    ),
    (
        "<filesystem><source dir='/srv/a'/><target dir='data'/></filesystem>",
        ("filesystem:data", "/srv/a", "9p file system"),
    ),
    (
        "<filesystem type='mount'><driver type='path'/><source dir='/srv/a'/><target dir='/d'/></filesystem>",
        ("filesystem:/d", "/srv/a", "9p file system"),
    ),
    (
        f"<hostdev mode='subsystem' type='pci'><source>{PCI}</source></hostdev>",
        ("hostdev:0000:06:12.5", "0000:06:12.5", "pci device of the node"),
    ),
    (
        "<hostdev mode='subsystem' type='usb'>"
        "<source><vendor id='0x1234'/><product id='0xbeef'/></source></hostdev>",
        ("hostdev:1234:beef", "1234:beef", "usb device of the node"),
    ),
    (
        "<hostdev mode='subsystem' type='usb'><source><address bus='1' device='7'/></source></hostdev>",
        ("hostdev:1:7", "1:7", "usb device of the node"),
    ),
    (
        "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/>"
        "<address bus='0' target='1' unit='2'/></source></hostdev>",
        ("hostdev:scsi_host0:0:1:2", "scsi_host0:0:1:2", "scsi device of the node"),
    ),
    (
        "<hostdev mode='subsystem' type='scsi'><source protocol='iscsi' name='iqn.x/1'/></hostdev>",
        ("hostdev:iqn.x/1", "iqn.x/1", "scsi device of the node"),
    ),
    (
        "<hostdev mode='subsystem' type='scsi_host'><source protocol='vhost' wwpn='naa.5'/></hostdev>",
        ("hostdev:naa.5", "naa.5", "scsi_host device of the node"),
    ),
    (
        f"<hostdev mode='subsystem' type='mdev'><source><address uuid='{MDEV}'/></source></hostdev>",
        (f"hostdev:{MDEV}", MDEV, "mdev device of the node"),
    ),
    (
        "<hostdev mode='capabilities' type='storage'><source><block>/dev/sdf</block></source></hostdev>",
        ("hostdev:/dev/sdf", "/dev/sdf", "storage device of the node"),
    ),
    ("<hostdev mode='subsystem'/>", ("hostdev", "", "unknown device of the node")),
    (
        "<memory model='nvdimm'><source><path>/srv/nv</path></source></memory>",
        ("memory:/srv/nv", "/srv/nv", "persistent memory, nvdimm"),
    ),
    (
        "<memory model='virtio-pmem'><source><path>/dev/pmem0</path></source></memory>",
        ("memory:/dev/pmem0", "/dev/pmem0", "persistent memory, virtio-pmem"),
    ),
    (
        "<shmem name='ring'><model type='ivshmem-plain'/></shmem>",
        ("shmem:ring", "", "shared memory, ivshmem-plain"),
    ),
    (
        "<shmem name='ring'><model type='ivshmem-doorbell'/><server path='/run/s'/></shmem>",
        ("shmem:ring", "/run/s", "shared memory, ivshmem-doorbell"),
    ),
    (
        "<pstore backend='acpi-erst'><path>/srv/ps</path></pstore>",
        ("pstore", "/srv/ps", "the guest kernel's pstore"),
    ),
]


@pytest.mark.parametrize(("element", "expected"), DEVICES)
def test_a_device_that_holds_data_follows_the_disks_as_one_that_is_skipped(
    element: str, expected: tuple[str, str, str]
) -> None:
    disk, device = disks(domain_of(element, rbd()), PLACES)
    assert disk.image
    target, source, what = expected
    assert device == Disk(target, source, skipped=f"no RBD image ({what})", gap=Gap.FOREIGN)


@pytest.mark.parametrize(
    "element",
    [
        "<filesystem type='ram'><source usage='1'/><target dir='/d'/></filesystem>",
        "<hostdev mode='capabilities' type='net'><source><interface>eth0</interface></source></hostdev>",
        "<memory model='dimm'><source><nodemask>0</nodemask></source><target/></memory>",
        "<memory model='virtio-mem'><target/></memory>",
        "<interface type='hostdev'><source><address type='pci'/></source></interface>",
    ],
)
def test_a_device_that_holds_no_data_is_not_listed(element: str) -> None:
    assert disks(domain_of(element), PLACES) == ()


def test_two_devices_of_one_name_differ_in_their_targets() -> None:
    device = "<shmem name='ring'><model type='ivshmem-plain'/></shmem>"
    assert [one.target for one in disks(domain_of(device, device), PLACES)] == ["shmem:ring", "shmem:ring#2"]


def _with_arguments(*arguments: str) -> str:
    values = "".join(f"<q:arg value='{one}'/>" for one in arguments)
    return (
        "<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><devices/>"
        f"<q:commandline>{values}<q:env name='X' value='-drive'/></q:commandline></domain>"
    )


@pytest.mark.parametrize(
    ("arguments", "shown", "gap"),
    [
        (("-drive", "file=/srv/x,password=secret"), "-drive", Gap.FOREIGN),
        (("-S", "--fsdev", "local,path=/srv"), "--fsdev", Gap.FOREIGN),
        (("-device", "vhost-user-blk-pci,chardev=c"), "-device", Gap.FOREIGN),
        (("-object", "memory-backend-file,mem-path=/srv/nv", "-hda", "/x"), "-object -hda", Gap.FOREIGN),
        (("-tpmdev", "emulator,id=t,chardev=c"), "-tpmdev", Gap.FOREIGN),
        (("-device", "loader,file=/srv/u-boot.bin,addr=0"), "-device", Gap.FOREIGN),
        (("-device", "loader,file=u-boot.bin"), "-device", Gap.FOREIGN),
        (("-device", '{"driver": "loader", "file": "u-boot.bin"}'), "-device", Gap.FOREIGN),
        (("-device", '{"driver":"e1000","romfile":"/srv/nic.rom"}'), "-device", Gap.FOREIGN),
        (("-device", "e1000,romfile=/srv/nic.rom"), "-device", Gap.FOREIGN),
        (("-device", "usb-mtp,rootdir=/srv/share"), "-device", Gap.FOREIGN),
        (("-device", "usb-host,vendorid=0x04b4,productid=0x1"), "-device", Gap.FOREIGN),
        (("-usbdevice", "disk:/srv/stick.img"), "-usbdevice", Gap.FOREIGN),
        (("-usbdevice", "disk:stick.img"), "-usbdevice", Gap.FOREIGN),
        (("-netdev", "user,id=n,smb=/srv/share"), "-netdev", Gap.FOREIGN),
        (("-netdev", "user,id=n,net=10.0.2.0/24,tftp=share"), "-netdev", Gap.FOREIGN),
        (("-nic", "user,smb=/srv/share"), "-nic", Gap.FOREIGN),
        (("-readconfig", "web.cfg"), "-readconfig", Gap.FOREIGN),
        (("-object", "secret,id=s,file=/etc/secret"), "-object", Gap.FOREIGN),
        (("-object", "tls-creds-x509,id=t,dir=/etc/pki/qemu"), "-object", Gap.FOREIGN),
        (("-L", "/srv/firmware"), "-L", Gap.FOREIGN),
        (("-L", "firmware"), "-L", Gap.FOREIGN),
        (("-L", "/usr/local/share/qemu"), "-L", Gap.FOREIGN),
        (("-add-fd", 'fd=3,set=2,opaque="rdwr:/srv/x"'), "-add-fd", Gap.FOREIGN),
        (("-set", "device.net0.romfile=/srv/nic.rom"), "-set", Gap.FOREIGN),
        (("-what-qemu-learns-next", "keep=/srv/x"), "-what-qemu-learns-next", Gap.FOREIGN),
        (("-what-qemu-learns-next", "./x"), "-what-qemu-learns-next", Gap.FOREIGN),
        (("-what-qemu-learns-next", "https://srv/x"), "-what-qemu-learns-next", Gap.FOREIGN),
        (("/srv/disk.img",), "a disk image", Gap.FOREIGN),
        (("-S", "-name", "x", "disk.img"), "a disk image", Gap.FOREIGN),
        (("-kernel", "/srv/vmlinuz", "-L", "/srv/firmware"), "-L", Gap.FOREIGN),
        (("-drive", "file=rbd:vms/a:key=secret"), "-drive", Gap.BROKEN),
        (("-blockdev", '{"driver": "rbd", "pool": "vms"}'), "-blockdev", Gap.BROKEN),
    ],
)
def test_data_that_only_arguments_of_qemu_name_is_listed_without_their_values(
    arguments: tuple[str, ...], shown: str, gap: Gap
) -> None:
    (found,) = disks(_with_arguments(*arguments), PLACES)
    assert (found.target, found.source, found.gap) == ("qemu:commandline", shown, gap)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-device", "virtio-rng-pci"),
        ("-object", "rng-random,id=drive"),
        ("-object", "rng-random,id=r,filename=/dev/hwrng"),
        ("-object", '{"qom-type":"input-linux","evdev":"/dev/input/event1"}'),
        ("-S",),
        ("-S", "-snapshot", "-cpu", "host,+vmx"),
        ("-kernel", "/srv/vmlinuz", "-append", "root=/dev/vda init=/bin/sh"),
        ("-fw_cfg", "name=opt/com.coreos/config,file=/srv/a.ign"),
        ("-chardev", "socket,id=c,path=/srv/monitor.sock"),
        ("-monitor", "unix:/srv/monitor,server"),
        ("-serial", "file:/var/log/web"),
        ("-D", "/var/log/qemu.log"),
        ("-name", "/srv/web"),
        ("-netdev", "user,id=n,net=10.0.2.0/24,hostfwd=tcp::2222-:22"),
        ("-netdev", "tap,id=n,script=no,downscript=no"),
        ("-netdev", "stream,id=n,addr.type=unix,addr.path=/run/net.sock"),
        ("-device", "e1000,romfile="),
        ("-device", "e1000,romfile=/usr/share/qemu/efi-e1000.rom"),
        ("-L", "/usr/share/seabios"),
        ("-usbdevice", "tablet"),
        ("-machine", "q35,profile=fast"),
        ("-rtc", "base=2026-11-29T12:00:00"),
        ("-global", "ICH9-LPC.disable_s3=1"),
        ("-m", "-1"),
    ],
)
def test_other_arguments_are_not_listed(arguments: tuple[str, ...]) -> None:
    assert disks(_with_arguments(*arguments), PLACES) == ()


# As libvirt itself writes them: it refuses some of the above.
OF_LIBVIRT = {
    "filesystem:data": "<filesystem type='mount'><source dir='/srv/a'/><target dir='data'/></filesystem>",
    "hostdev:0000:06:12.5": f"<hostdev mode='subsystem' type='pci'><source>{PCI}</source></hostdev>",
    "hostdev:1234:beef": DEVICES[5][0],
    "hostdev:scsi_host0:0:1:2": DEVICES[7][0],
    "hostdev:iqn.x/1": "<hostdev mode='subsystem' type='scsi'><source protocol='iscsi' name='iqn.x/1'>"
    "<host name='san' port='3260'/></source></hostdev>",
    "hostdev:naa.5123456789abcde0": "<hostdev mode='subsystem' type='scsi_host'>"
    "<source protocol='vhost' wwpn='naa.5123456789abcde0'/></hostdev>",
    f"hostdev:{MDEV}": "<hostdev mode='subsystem' type='mdev' model='vfio-pci'>"
    f"<source><address uuid='{MDEV}'/></source></hostdev>",
    "memory:/srv/nv": "<memory model='nvdimm'><source><path>/srv/nv</path></source>"
    "<target><size unit='KiB'>512</size></target></memory>",
    "shmem:ring": "<shmem name='ring'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>",
}


@pytest.mark.parametrize("state", ["", SHUT_OFF])
@pytest.mark.parametrize("target", OF_LIBVIRT)
def test_libvirt_s_own_notation_is_understood(tmp_path: Path, target: str, state: str) -> None:
    element = domain_element(devices=OF_LIBVIRT[target], state=state)
    with Hypervisor(node_uri(tmp_path / "node.xml", element)) as hypervisor:
        (web,) = hypervisor.domains()
    assert [(device.target, device.gap) for device in web.disks] == [(target, Gap.FOREIGN)]
