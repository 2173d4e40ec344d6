"""backup/hypervisor/copy_xml.py: a copy shares nothing, and an isolated one has no outside access."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import pytest

from backup.hypervisor.metadata import override
from backup.hypervisor.restored_xml import redefined
from backup.model import Override

from ..samples import image
from .test_restored_xml import change

AGENT = (
    "<channel type='unix'><source mode='bind' path='/run/{0}'/><target type='virtio' name='{0}'/></channel>"
)
AGENT = AGENT.format("org.qemu.guest_agent.0")


def of_a_copy(
    devices: str, isolated: bool = False, beside: str = ""
) -> tuple[ElementTree.Element, Sequence[str]]:
    xml = f"<domain><name>x</name><uuid>x</uuid><devices>{devices}</devices>{beside}</domain>"
    copied, left_out = redefined(xml, change(copy=True, isolated=isolated))
    return ElementTree.fromstring(copied), left_out


def shown(domain: ElementTree.Element, *tags: str) -> str:
    devices = domain.find("devices")
    assert devices is not None
    found = [one for one in devices if not tags or one.tag in tags]
    return "".join(ElementTree.tostring(one, encoding="unicode").strip() for one in found)


def test_a_copy_has_no_disk_that_was_not_restored() -> None:
    disk = "<disk type='block' device='lun'><source dev='/dev/mapper/a'/><target dev='sda'/></disk>"
    empty = '<disk type="file" device="floppy"><target dev="fdb" /></disk>'
    domain, left_out = of_a_copy(disk + empty)
    assert shown(domain) == empty
    assert left_out == ["sda, which was not restored"]


@pytest.mark.parametrize(
    ("drive", "named"),
    [
        ("'file' device='floppy'><source file='/srv/a.img'/>", "/srv/a.img of floppy"),
        ("'file' device='cdrom'><source file='/x.iso' startupPolicy='mandatory'/>", "/x.iso of cdrom"),
        ("'block' device='cdrom'><source dev='/dev/sr0'/><backingStore/>", "/dev/sr0 of cdrom"),
        ("'volume' device='cdrom'><source pool='isos' volume='a'/>", "a of cdrom"),
        (
            "'network' device='cdrom'><auth username='u'/><source protocol='https' name='/a.iso'/>",
            "/a.iso of cdrom",
        ),
        ("'network' device='cdrom'><source protocol='rbd' name='isos/a'/>", "isos/a of cdrom"),
    ],
)
@pytest.mark.parametrize("isolated", [False, True])
def test_a_copy_starts_without_the_media_that_were_not_restored(
    drive: str, named: str, isolated: bool
) -> None:
    domain, left_out = of_a_copy(f"<disk type={drive}<target dev='sda' /><readonly /></disk>", isolated)
    assert left_out == [f"the medium {named} sda, which starts empty"]
    (disk,) = domain.findall("./devices/disk")
    assert (disk.get("type"), [one.tag for one in disk]) == ("file", ["target", "readonly"])


@pytest.mark.parametrize("copy", [False, True])
def test_a_medium_on_a_restored_image_stays_in_its_drive(copy: bool) -> None:
    drive = "<disk type='network' device='cdrom'><source protocol='rbd' name='vms/config'/>"
    xml = f"<domain><name>x</name><uuid>x</uuid><devices>{drive}<target dev='sda'/></disk></devices></domain>"
    restored, left_out = redefined(xml, change(copy, images={"sda": image("scratch/config")}))
    source = ElementTree.fromstring(restored).find("./devices/disk/source")
    assert source is not None
    assert (source.get("name"), left_out) == ("scratch/config", [])


@pytest.mark.parametrize("copy", [False, True])
def test_a_file_in_a_drive_that_had_an_image_before_is_no_error(copy: bool) -> None:
    drive = "<disk type='file' device='cdrom'><source file='/x.iso'/><target dev='sda'/></disk>"
    xml = f"<domain><name>x</name><uuid>x</uuid><devices>{drive}</devices></domain>"
    restored, left_out = redefined(xml, change(copy, images={"sda": image("scratch/config")}))
    assert "scratch" not in restored
    assert len(left_out) == copy


SHARED = [
    (
        "<memory model='nvdimm'><source><path>/srv/nvdimm</path></source></memory>",
        "memory:/srv/nvdimm (/srv/nvdimm)",
    ),
    ("<memory model='virtio-pmem'><source><path>/pmem</path></source></memory>", "memory:/pmem (/pmem)"),
    (
        "<hostdev mode='subsystem' type='scsi'><source protocol='iscsi' name='iqn.x/1'/></hostdev>",
        "hostdev:iqn.x/1 (iqn.x/1)",
    ),
    (
        "<hostdev mode='subsystem' type='scsi_host'><source protocol='vhost' wwpn='naa.1'/></hostdev>",
        "hostdev:naa.1 (naa.1)",
    ),
    (
        "<hostdev mode='subsystem' type='mdev'><source><address uuid='1f2e'/></source></hostdev>",
        "hostdev:1f2e (1f2e)",
    ),
    (
        "<hostdev type='usb'><source><vendor id='0x04b4'/><product id='0x1'/></source></hostdev>",
        "hostdev:04b4:1 (04b4:1)",
    ),
    (
        "<hostdev mode='capabilities' type='net'><source><interface>eth0</interface></source></hostdev>",
        "hostdev net",
    ),
    ("<pstore backend='acpi-erst'><path>/srv/pstore</path></pstore>", "pstore (/srv/pstore)"),
    (
        "<filesystem><driver type='virtiofs'/><source dir='/srv'/><target dir='d'/></filesystem>",
        "filesystem:d (/srv)",
    ),
    (
        "<filesystem type='mount'><source dir='/srv'/><target dir='d'/><readonly/></filesystem>",
        "filesystem:d (/srv)",
    ),
    ("<shmem name='x'><model type='ivshmem-plain'/></shmem>", "shmem:x"),
    ("<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>", "tpm (/dev/tpm0)"),
    ("<tpm><backend type='external'><source type='unix' path='/run/tpm'/></backend></tpm>", "tpm (/run/tpm)"),
    ("<lease><lockspace>l</lockspace><key>disk</key><target path='/leases'/></lease>", "lease (disk)"),
    (
        "<interface type='vhostuser'><source type='unix' path='/run/v' mode='client'/></interface>",
        "interface vhostuser (/run/v)",
    ),
    (
        "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>",
        "interface vdpa (/dev/vhost-vdpa-0)",
    ),
    (
        "<interface type='hostdev'><source><address type='pci' slot='0x07'/></source></interface>",
        "interface hostdev",
    ),
    (
        "<interface type='direct'><source dev='eth1' mode='passthrough'/></interface>",
        "interface direct (eth1)",
    ),
    ("<interface type='ethernet'><target dev='tap7' managed='no'/></interface>", "interface ethernet"),
    ("<interface type='server'><source address='10.0.0.1' port='5558'/></interface>", "interface server"),
    (
        "<redirdev bus='usb' type='tcp'><source mode='connect' host='a' service='1'/></redirdev>",
        "redirdev tcp",
    ),
    ("<smartcard mode='host'/>", "smartcard host"),
    ("<input type='evdev'><source dev='/dev/input/event1'/></input>", "input evdev (/dev/input/event1)"),
    (
        "<input type='passthrough'><source evdev='/dev/input/event1'/></input>",
        "input passthrough (/dev/input/event1)",
    ),
    (
        "<rng><backend model='egd' type='unix'><source mode='bind' path='/r'/></backend></rng>",
        "rng",
    ),
    ("<what-libvirt-learns-next/>", "what-libvirt-learns-next"),
]


@pytest.mark.parametrize(("device", "title"), SHARED)
@pytest.mark.parametrize("isolated", [False, True])
def test_what_a_copy_would_share_with_the_original_is_left_out_and_reported(
    device: str, title: str, isolated: bool
) -> None:
    kept = (
        '<memory model="dimm"><target><size>1</size></target></memory>'
        '<tpm model="tpm-tis"><backend type="emulator" /></tpm>'
    )
    domain, left_out = of_a_copy(device + kept, isolated)
    assert shown(domain) == kept
    assert left_out == [f"{title}, which the copy would share with the original"]


def test_a_copy_keeps_what_several_domains_can_have() -> None:
    devices = (
        '<interface type="network"><source network="default" /></interface>'
        '<interface type="direct"><source dev="eth0" mode="bridge" /></interface>'
        '<redirdev bus="usb" type="spicevmc" /><redirfilter />'
        '<smartcard mode="passthrough" type="spicevmc" />'
        '<rng model="virtio"><backend model="random">/dev/urandom</backend></rng>'
        '<filesystem type="ram"><source usage="1" /><target dir="d" /></filesystem>'
        '<input type="tablet" bus="usb" /><crypto model="virtio"><backend model="builtin" /></crypto>'
    )
    domain, left_out = of_a_copy(devices)
    assert (shown(domain), left_out) == (devices, [])


OWN = {
    "<vsock model='virtio'><cid auto='no' address='7'/></vsock>": (
        '<vsock model="virtio"><cid auto="yes" /></vsock>',
        ["the fixed address of its vsock"],
    ),
    "<vsock><cid auto='yes' address='7'/></vsock>": ('<vsock><cid auto="yes" /></vsock>', []),
    "<graphics type='vnc' port='5907' autoport='no'/>": (
        '<graphics type="vnc" autoport="yes" />',
        ["the fixed port of its vnc display"],
    ),
    "<graphics type='spice' port='5907' tlsPort='5908' websocket='5700'/>": (
        '<graphics type="spice" websocket="-1" autoport="yes" />',
        ["the fixed port of its spice display", "the fixed websocket of its spice display"],
    ),
    "<graphics type='vnc' port='-1' autoport='yes'/>": ('<graphics type="vnc" autoport="yes" />', []),
    "<graphics type='vnc' socket='/run/a'><listen type='socket' socket='/run/a'/></graphics>": (
        '<graphics type="vnc"><listen type="socket" /></graphics>',
        ["the socket of its vnc display"],
    ),
    "<interface type='bridge'><mac address='52:54:00:00:00:01'/><target dev='tap7'/></interface>": (
        '<interface type="bridge"><target /></interface>',
        ["the name tap7 of its network device"],
    ),
    "<interface type='bridge'><virtualport type='openvswitch'><parameters interfaceid='1f' profileid='p'/>"
    "</virtualport></interface>": (
        '<interface type="bridge"><virtualport type="openvswitch"><parameters profileid="p" /></virtualport>'
        "</interface>",
        [],
    ),
    "<interface type='user'><portForward proto='tcp'/><backend type='passt' logFile='/l'/></interface>": (
        '<interface type="user"><backend type="passt" /></interface>',
        ["a port of the node that leads to it (portForward)"],
    ),
    "<audio id='1' type='file' path='/a.wav'/>": (
        '<audio id="1" type="none" />',
        ["the file of its audio backend"],
    ),
}


@pytest.mark.parametrize("device", OWN)
def test_a_copy_gets_names_and_numbers_of_its_own(device: str) -> None:
    expected, reported = OWN[device]
    domain, left_out = of_a_copy(device)
    assert (shown(domain), left_out) == (expected, reported)


def test_a_copy_loses_the_additional_qemu_command_line() -> None:
    namespace = "http://libvirt.org/schemas/domain/qemu/1.0"
    command_line = f"<q:commandline xmlns:q='{namespace}'><q:arg value='-drive'/></q:commandline>"
    domain, left_out = of_a_copy("", beside=command_line)
    assert len(domain) == 3
    assert left_out == ["its additional QEMU command line"]


@pytest.mark.parametrize("tag", ["serial", "console", "parallel"])
@pytest.mark.parametrize(
    "inside",
    [
        "'tcp'><source mode='connect' host='node2' service='1'/><protocol type='telnet'/>",
        "'udp'><source mode='connect' host='a' service='1'/><source mode='bind' host='b' service='2'/>",
        "'unix'><source mode='bind' path='/run/web'/>",
        "'dev'><source path='/dev/ttyS0'/>",
        "'file'><source path='/var/log/web'/>",
        "'pipe'><source path='/run/pipe'/>",
        "'pty'><log file='/var/log/web'/>",
    ],
)
def test_the_consoles_of_a_copy_are_disconnected_from_the_original(tag: str, inside: str) -> None:
    domain, left_out = of_a_copy(f"<{tag} type={inside}<target port='0' /></{tag}>")
    assert shown(domain) == f'<{tag} type="pty"><target port="0" /></{tag}>'
    assert left_out == []


@pytest.mark.parametrize("kind", ["tcp", "unix", "dev", "file", "pipe"])
def test_the_channels_of_a_copy_get_new_sockets(kind: str) -> None:
    channel = f"<channel type='{kind}'><source path='/run/web'/><target type='virtio' name='a'/></channel>"
    guestfwd = f"<channel type='{kind}'><source path='/x'/><target type='guestfwd' address='1'/></channel>"
    domain, _ = of_a_copy(channel + guestfwd + AGENT)
    assert shown(domain) == "".join(
        f'<channel type="unix"><target type="virtio" name="{name}" /></channel>'
        for name in ("a", "org.qemu.guest_agent.0")
    )


def test_a_copy_keeps_its_display_channels() -> None:
    display = '<graphics type="spice" /><channel type="spicevmc"><target type="virtio" name="s" /></channel>'
    domain, _ = of_a_copy(display)
    assert shown(domain) == display
    domain, _ = of_a_copy(display, isolated=True)
    assert shown(domain) == "", "without a display, libvirt would refuse the channel"


@pytest.mark.parametrize(
    "device",
    [
        "<hostdev mode='subsystem' type='pci'/>",
        "<redirdev bus='usb' type='spicevmc'/>",
        "<redirfilter/>",
        "<smartcard mode='host'/>",
        "<filesystem type='mount'><source dir='/srv'/></filesystem>",
        "<shmem name='x'/>",
        "<vsock model='virtio'/>",
        "<lease/>",
        "<what-libvirt-learns-next/>",
        "<input type='evdev'><source dev='/dev/input/event1'/></input>",
        "<rng model='virtio'><backend model='egd' type='tcp'><source host='a' service='1'/></backend></rng>",
        "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
        "<channel type='pty'><target type='virtio' name='x'/></channel>",
    ],
)
def test_an_isolated_copy_has_only_devices_without_outside_access(device: str) -> None:
    kept = (
        "<emulator>/usr/bin/qemu</emulator>"
        '<input type="tablet" bus="usb" />'
        '<rng model="virtio"><backend model="random">/dev/urandom</backend></rng>'
        '<tpm model="tpm-tis"><backend type="emulator" /></tpm>'
    )
    domain, _ = of_a_copy(kept + device + AGENT, isolated=True)
    assert shown(domain, "emulator", "input", "rng", "tpm") == kept
    agent = '<channel type="unix"><target type="virtio" name="org.qemu.guest_agent.0" /></channel>'
    assert shown(domain) == kept + agent


def test_an_isolated_copy_has_no_sound_output() -> None:
    sound = '<sound model="ich9"><audio id="1" /></sound>'
    domain, _ = of_a_copy(f"{sound}<audio id='1' type='spice'><input voices='1'/></audio>", isolated=True)
    assert shown(domain) == f'{sound}<audio id="1" type="none" />'


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "<metadata><x:y xmlns:x='z'/></metadata>",
        "<metadata><backup xmlns='virt-rbd-backup' freeze='required'/></metadata>",
        "<metadata><b:backup xmlns:b='other' enabled='yes'/></metadata>",
    ],
)
def test_an_isolated_copy_is_excluded_from_backups_whatever_its_metadata(metadata: str) -> None:
    domain, _ = of_a_copy("", isolated=True, beside=metadata)
    assert override(ElementTree.tostring(domain, encoding="unicode")) == Override(enabled=False)
    domain, _ = of_a_copy("", beside=metadata)
    assert override(ElementTree.tostring(domain, encoding="unicode")) == override(f"<d>{metadata}</d>")


def test_an_isolated_copy_leaves_no_dump_of_its_memory_and_runs_as_any_other_qemu() -> None:
    devices = (
        "<emulator>{}</emulator><watchdog model='i6300esb' action='dump' />"
        "<rng model='virtio'><backend model='random'>/etc/shadow</backend></rng>"
    )
    beside = (
        "<on_crash>coredump-restart</on_crash>"
        "<blkiotune><device><path>/dev/sda</path><weight>1000</weight></device></blkiotune>"
        "<seclabel type='static' model='dac' relabel='yes'><label>+0:+0</label></seclabel>"
    )
    domain, _ = of_a_copy(devices.format("/usr/../var/tmp/evil"), True, beside)
    assert shown(domain) == (
        '<watchdog model="i6300esb" action="none" />'
        '<rng model="virtio"><backend model="random">/dev/urandom</backend></rng>'
    )
    assert domain.findtext("on_crash") == "destroy"
    assert (domain.find("blkiotune"), domain.find("seclabel")) == (None, None)
    domain, _ = of_a_copy(devices.format("/usr/bin/qemu-system-x86_64"), True, beside)
    assert domain.findtext("devices/emulator") == "/usr/bin/qemu-system-x86_64"
    domain, _ = of_a_copy(devices.format("/opt/qemu"), False, beside)
    assert (domain.findtext("devices/emulator"), domain.findtext("on_crash")) == (
        "/opt/qemu",
        "coredump-restart",
    )


def test_a_drive_without_a_medium_has_nothing_below_it() -> None:
    store = "<backingStore type='file'><format type='raw'/><source file='/etc/shadow'/></backingStore>"
    domain, _ = of_a_copy(f"<disk type='file' device='cdrom'>{store}<target dev='sda' /></disk>")
    assert shown(domain) == '<disk type="file" device="cdrom"><target dev="sda" /></disk>'
