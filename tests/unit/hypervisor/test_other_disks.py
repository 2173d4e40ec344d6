"""hypervisor/disk_xml.py: disks that are not on RBD, removable ones, and layers of backing chains."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from backup.hypervisor.disk_xml import layers
from backup.model import Disk, Gap, Image

from ..disk_elements import PLACES, backing, only, other, rbd

BASE = "<source protocol='rbd' name='vms/base'/>"
FILE = "<source file='/srv/x.qcow2'/>"

# The element; what an admin knows the disk by; what it is.
FOREIGN = [
    (other("file", FILE), "/srv/x.qcow2", "file"),
    (other("block", "<source dev='/dev/vg/x'/>"), "/dev/vg/x", "block"),
    (other("dir", "<source dir='/srv/fat'/>"), "/srv/fat", "dir"),
    (other("volume", "<source pool='default' volume='v'/>"), "v", "volume"),
    (other("network", "<source protocol='nbd' name='export'/>"), "export", "nbd"),
    (
        other("network", "<source protocol='iscsi' name='iqn.2013-07.com.example:web/1'/>"),
        "iqn.2013-07.com.example:web/1",
        "iscsi",
    ),
    (other("nvme", "<source type='pci' namespace='1'><address/></source>"), "", "nvme"),
    (other("vhostuser", "<source type='unix' path='/run/spdk.sock'/>"), "/run/spdk.sock", "vhostuser"),
    (other("file", ""), "", "file"),
    (other("network", ""), "", "network"),
]


def disk_of(element: str) -> Disk:
    return only(layers(ElementTree.fromstring(element), PLACES))


def layers_of(element: str) -> dict[str, tuple[str, str, Gap]]:
    """Return the image, the reason if it is skipped, and the gap, by each layer's target."""
    return {
        disk.target: (str(disk.image or ""), disk.skipped, disk.gap)
        for disk in layers(ElementTree.fromstring(element), PLACES)
    }


@pytest.mark.parametrize(("element", "shown", "kind"), FOREIGN)
def test_a_disk_without_an_rbd_image_is_skipped_and_shown_by_its_source(
    element: str, shown: str, kind: str
) -> None:
    assert disk_of(element) == Disk("vda", shown, skipped=f"no RBD image ({kind})", gap=Gap.FOREIGN)


@pytest.mark.parametrize(
    ("element", "source", "reason"),
    [
        (other("file", "", device="cdrom"), "", "a cdrom without a medium"),
        (other("file", "", device="floppy"), "", "a floppy without a medium"),
        (other("file", "<source file='/x.iso'/>", device="cdrom"), "/x.iso", "a cdrom"),
        (other("file", "<source file='/x.img'/>", device="floppy"), "/x.img", "a floppy"),
        (other("network", "<source protocol='https' name='/x.iso'/>", device="cdrom"), "/x.iso", "a cdrom"),
        (other("network", "", device="cdrom"), "", "a cdrom without a medium"),
        (other("volume", "<source pool='gone' volume='x'/>", device="cdrom"), "x", "a cdrom"),
    ],
)
def test_a_removable_medium_is_skipped_without_a_gap(element: str, source: str, reason: str) -> None:
    assert disk_of(element) == Disk("vda", source, skipped=reason, gap=Gap.NONE)


@pytest.mark.parametrize("device", ["cdrom", "floppy"])
@pytest.mark.parametrize(
    ("element", "image"),
    [
        (rbd("vms/config"), "vms/config"),
        (other("volume", "<source pool='bare' volume='config'/>"), "ssd/config"),
        (other("block", "<source dev='/dev/rbd7'/>"), "vms/tenant/root"),
    ],
)
def test_a_removable_medium_on_rbd_is_saved_like_a_disk(element: str, image: str, device: str) -> None:
    found = disk_of(element.replace("'disk'", f"'{device}'"))
    assert (str(found.image), found.skipped, found.gap) == (image, "", Gap.NONE)


def test_a_removable_medium_on_rbd_that_cannot_be_saved_fails_its_domain() -> None:
    found = disk_of(other("block", "<source dev='/dev/rbd7p1'/>", device="cdrom"))
    assert (found.skipped, found.gap) == ("a partition of an RBD image", Gap.BROKEN)
    golden = rbd("isos/a", "<snapshot name='s'/>", device="cdrom")
    assert disk_of(golden).skipped == "runs from snapshot s, which never changes"


def _with_data(kind: str, store: str, metadata: str = "file='/srv/x.qcow2'") -> str:
    """Give the source of a qcow2 file whose data is elsewhere (since libvirt 10.10)."""
    return f"<source {metadata}><dataStore type='{kind}'><format type='raw'/>{store}</dataStore></source>"


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (
            other("file", _with_data("network", BASE)),
            "its qcow2 metadata is in /srv/x.qcow2, its data in RBD image vms/base (dataStore)",
        ),
        (
            other("file", _with_data("volume", "<source pool='bare' volume='a'/>")),
            "its qcow2 metadata is in /srv/x.qcow2, its data in RBD image ssd/a (dataStore)",
        ),
        (
            other("file", _with_data("block", "<source dev='/dev/rbd7'/>")),
            "its qcow2 metadata is in /srv/x.qcow2, its data in RBD image vms/tenant/root (dataStore)",
        ),
        (
            other("file", _with_data("block", "<source dev='/dev/rbd7p1'/>")),
            "its qcow2 metadata is in /srv/x.qcow2, its data in /dev/rbd7p1 (dataStore)",
        ),
        (
            other("network", _with_data("network", BASE, "protocol='rbd' name='vms/meta'")),
            "its qcow2 metadata is in RBD image vms/meta, its data in RBD image vms/base (dataStore)",
        ),
        (
            other("network", _with_data("file", FILE, "protocol='rbd' name='vms/meta'")),
            "its qcow2 metadata is in RBD image vms/meta, its data in /srv/x.qcow2 (dataStore)",
        ),
    ],
)
def test_an_image_whose_metadata_and_data_are_apart_cannot_be_backed_up(element: str, reason: str) -> None:
    found = disk_of(element)
    assert (found.image, found.skipped, found.gap) == (None, reason, Gap.BROKEN)


def test_metadata_and_data_that_are_both_in_files_are_skipped() -> None:
    found = disk_of(other("file", _with_data("file", "<source file='/srv/x.raw'/>")))
    assert found == Disk("vda", "/srv/x.qcow2", skipped="no RBD image (file)", gap=Gap.FOREIGN)


def test_data_on_rbd_of_a_lower_layer_counts_too() -> None:
    found = layers_of(other("file", FILE, backing("file", _with_data("network", BASE))))
    assert [gap for _, _, gap in found.values()] == [Gap.FOREIGN, Gap.BROKEN]
    assert "its data in RBD image vms/base" in found["vda.backing1"][1]


def test_an_empty_backing_store_ends_the_chain() -> None:
    assert layers_of(rbd(beside="<backingStore/>")) == {"vda": ("vms/root", "", Gap.NONE)}


def test_the_images_of_lower_layers_are_backed_up_as_separate_disks() -> None:
    chain = backing("network", BASE, backing("network", "<source protocol='rbd' name='vms/lowest'/>"))
    assert layers_of(rbd(beside=chain)) == {
        "vda": ("vms/root", "", Gap.NONE),
        "vda.backing1": ("vms/base", "", Gap.NONE),
        "vda.backing2": ("vms/lowest", "", Gap.NONE),
    }


def test_an_rbd_image_with_an_overlay_that_is_not_on_rbd_cannot_be_backed_up() -> None:
    reason = "changes on top of RBD image vms/base are stored elsewhere: no RBD image (file)"
    assert layers_of(other("file", FILE, backing("network", BASE))) == {
        "vda": ("", reason, Gap.BROKEN),
        "vda.backing1": ("vms/base", "", Gap.NONE),
    }


def test_an_image_in_a_deeper_layer_counts_too() -> None:
    chain = backing("file", "<source file='/srv/middle.qcow2'/>", backing("network", BASE))
    found = layers_of(other("file", FILE, chain))
    assert found["vda"][1].startswith("changes on top of RBD image vms/base are stored elsewhere")
    assert [gap for _, _, gap in found.values()] == [Gap.BROKEN, Gap.FOREIGN, Gap.NONE]
    assert found["vda.backing2"][0] == "vms/base"


def test_an_rbd_overlay_needs_the_file_that_it_is_based_on() -> None:
    assert layers_of(rbd(beside=backing("file", FILE))) == {
        "vda": ("vms/root", "", Gap.NONE),
        "vda.backing1": ("", "no RBD image (file)", Gap.BROKEN),
    }


def test_files_on_top_of_files_are_skipped() -> None:
    assert [gap for _, _, gap in layers_of(other("file", FILE, backing("file", FILE))).values()] == [
        Gap.FOREIGN,
        Gap.FOREIGN,
    ]


def test_a_file_on_top_of_an_image_s_snapshot_is_skipped() -> None:
    golden = "<source protocol='rbd' name='vms/base'><snapshot name='golden'/></source>"
    assert layers_of(other("file", FILE, backing("network", golden))) == {
        "vda": ("", "no RBD image (file)", Gap.FOREIGN),
        "vda.backing1": ("", "runs from snapshot golden, which never changes", Gap.NONE),
    }


def test_a_disk_without_a_known_image_stays_an_error_whatever_its_layers() -> None:
    partition = other("block", "<source dev='/dev/rbd7p1'/>", backing("network", BASE))
    assert layers_of(partition)["vda"] == ("", "a partition of an RBD image", Gap.BROKEN)


def test_a_layer_s_address_and_encryption_are_its_own() -> None:
    base = "<source protocol='rbd' name='vms/base'><host name='ceph2'/><encryption format='luks'/></source>"
    top, below = layers(ElementTree.fromstring(rbd(beside=backing("network", base))), PLACES)
    assert (top.address.monitors, top.encryption) == ((), "")
    assert (below.image, below.address.monitors, below.encryption) == (
        Image("vms", "base"),
        ("ceph2",),
        "luks",
    )


QCOW2 = "<driver name='qemu' type='qcow2'/>"
IN_QCOW2 = f"<backingStore type='network'><format type='qcow2'/>{BASE}{{}}</backingStore>"


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ("", [False]),
        ("<driver name='qemu' type='raw'/>", [False]),
        (QCOW2, [True]),
        (QCOW2 + "<backingStore/>", [False]),
        (QCOW2 + backing("network", BASE), [False, False]),
        (QCOW2 + backing("network", BASE, ""), [False, False]),
        (QCOW2 + IN_QCOW2.format(""), [False, True]),
        (QCOW2 + IN_QCOW2.format("<backingStore/>"), [False, False]),
    ],
)
def test_a_header_is_needed_where_the_xml_does_not_end_the_chain(beside: str, expected: list[bool]) -> None:
    found = layers(ElementTree.fromstring(rbd("vms/root", beside=beside)), PLACES)
    assert [disk.needs_header for disk in found] == expected
