"""backup/hypervisor/guest_mounts.py: file systems in files of the guest are not frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from backup.errors import FreezeFailed
from backup.hypervisor.guest_mounts import BlockDevices, Mount, block_devices, partial_freeze

from ..raising import raises

ROOT: Mount = ("/", "vda1", "ext4", ["vda"])
DATA: Mount = ("/data", "dm-0", "xfs", ["vdb"])
LOOP: Mount = ("/tmp", "loop0", "ext4", [])
SNAP: Mount = ("/snap/core/1", "loop7", "squashfs", [])

CASES: Mapping[str, tuple[Sequence[Mount], Sequence[str], Sequence[str]]] = {
    "a loop file": ([ROOT, LOOP, DATA], ["/", "/data"], ["/tmp"]),
    "its file system mounted again": ([ROOT, LOOP, ("/b", "vda1", "ext4", ["vda"])], ["/", "/b"], ["/tmp"]),
    "a partition of a loop file": ([ROOT, ("/p", "loop0p1", "xfs", [])], ["/"], ["/p"]),
    "served over NBD": ([ROOT, ("/n", "nbd0", "ext4", [])], ["/"], ["/n"]),
    "a partition of such a device": ([ROOT, ("/n", "nbd1p2", "ext4", [])], ["/"], ["/n"]),
    "served over ublk": ([ROOT, ("/u", "ublkb0", "xfs", [])], ["/"], ["/u"]),
    "an RBD image that the guest maps itself": ([ROOT, ("/r", "rbd0p1", "xfs", [])], ["/"], ["/r"]),
    "an AoE device": ([ROOT, ("/a", "etherd!e1.0", "ext4", [])], ["/"], ["/a"]),
    "a volume of ZFS": ([ROOT, ("/z", "zd16", "ext4", [])], ["/"], ["/z"]),
    "libvirt's name for one": ([ROOT, ("/safe", "dm-3", "ext4", ["loop0"])], ["/"], ["/safe"]),
    "over another one": ([ROOT, ("/tmp", "vda2", "ext4", ["vda"]), LOOP], ["/"], ["/tmp"]),
    "with read-only ones": ([ROOT, SNAP, LOOP], ["/"], ["/tmp"]),
}


@pytest.mark.parametrize("case", CASES)
def test_file_systems_in_files_are_left_and_all_others_are_frozen(case: str) -> None:
    mounts, freeze, leave = CASES[case]
    found = partial_freeze(mounts)
    assert found
    assert (list(found.freeze), list(found.leave)) == (freeze, leave)


@pytest.mark.parametrize(
    "mounts",
    [
        *([], [ROOT, DATA], [ROOT, SNAP], [LOOP]),
        [("/", "dm-0", "ext4", []), ("/home", "dm-1", "ext4", [])],
        [ROOT, ("/a", "nvme0n1p1", "xfs", []), ("/b", "sdb", "ext4", []), ("/c", "pmem0", "ext4", [])],
        [("/", "nbd0", "ext4", [])],
    ],
    ids=[
        *("none", "disks", "read-only files", "nothing else", "disks that libvirt does not know"),
        *("disks that are none of the domain's", "a root over the network"),
    ],
)
def test_otherwise_everything_is_frozen(mounts: Sequence[Mount]) -> None:
    assert partial_freeze(mounts) is None


STACKED: Mount = ("/safe", "dm-3", "ext4", [])  # of which libvirt names no disk
MADE_OF: Mapping[str, Mapping[str, Sequence[str]]] = {
    "a file": {"dm-3": ["loop0"]},
    "a file's partition": {"dm-3": ["loop0p2"], "loop0p2": ["loop0"]},
    "encrypted LVM in a file": {"dm-3": ["dm-2"], "dm-2": ["md0"], "md0": ["loop1", "vda3"]},
    "NBD below LVM": {"dm-3": ["nbd0"]},
    "a disk that libvirt does not name": {"dm-3": ["sda2"], "sda2": ["sda"], "sda": []},
    "encrypted LVM on RAID": {"dm-3": ["dm-2"], "dm-2": ["md127"], "md127": ["nvme0n1", "nvme1n1"]},
    "a device mapper without parts": {"dm-3": []},
    "another device": {"dm-7": ["loop0"]},
    "a part that is not listed": {"dm-3": ["dm-2"]},
    "itself": {"dm-3": ["dm-2"], "dm-2": ["dm-3"]},
}


@pytest.mark.parametrize("case", list(MADE_OF)[:4])
def test_a_stacked_device_is_left_where_the_agent_lists_a_loop_device_below_it(case: str) -> None:
    found = partial_freeze([ROOT, STACKED, DATA], lambda: BlockDevices(MADE_OF[case]))
    assert found
    assert (found.freeze, found.leave, found.unknown) == (("/", "/data"), ("/safe",), ())
    found.require_known()


@pytest.mark.parametrize("case", list(MADE_OF)[4:6])
def test_a_stacked_device_on_disks_that_libvirt_does_not_name_is_frozen(case: str) -> None:
    assert partial_freeze([ROOT, STACKED, DATA], lambda: BlockDevices(MADE_OF[case])) is None
    found = partial_freeze([ROOT, STACKED, LOOP], lambda: BlockDevices(MADE_OF[case]))
    assert found
    assert (found.freeze, found.leave) == (("/", "/safe"), ("/tmp",))


def test_an_old_agent_that_names_disks_below_it_is_believed() -> None:
    assert partial_freeze([ROOT, STACKED], lambda: BlockDevices(on_disks={"/", "/safe"})) is None


@pytest.mark.parametrize("case", [None, *list(MADE_OF)[6:]])
def test_a_stacked_device_of_which_nothing_is_known_is_never_left_in_silence(case: str | None) -> None:
    found = partial_freeze([ROOT, STACKED], lambda: BlockDevices(MADE_OF[case] if case else {}))
    assert found
    assert (found.freeze, found.leave, found.unknown) == (("/",), (), ("/safe",))
    message = "it is not known whether /safe is in a file of the guest"
    with raises(message, FreezeFailed):
        found.require_known()


def test_a_read_only_one_of_which_nothing_is_known_has_nothing_to_freeze() -> None:
    assert partial_freeze([ROOT, ("/image", "dm-3", "squashfs", [])]) is None


@pytest.mark.parametrize("device", ["drbd0", "bcache0", "md127", "dm-3", "foo0"])
@pytest.mark.parametrize("disks", [[], ["vdb"]], ids=["no disk", "one disk beside it"])
def test_what_the_agent_lists_below_a_device_of_any_kind_counts(device: str, disks: Sequence[str]) -> None:
    """A mirror of a disk and a file is on a disk too, which libvirt names, unlike the file."""
    mounts: Sequence[Mount] = [ROOT, ("/safe", device, "ext4", disks)]
    found = partial_freeze(mounts, lambda: BlockDevices({device: ["loop0", "vdb"], "loop0": [], "vdb": []}))
    assert found
    assert (found.freeze, found.leave, found.unknown) == (("/",), ("/safe",), ())
    assert (
        partial_freeze(mounts, lambda: BlockDevices({device: ["vdb1"], "vdb1": ["vdb"], "vdb": []})) is None
    )


@pytest.mark.parametrize("device", ["drbd0", "bcache0"])
def test_a_replicated_or_cached_device_is_trusted_only_where_a_disk_below_it_is_known(device: str) -> None:
    found = partial_freeze([ROOT, ("/safe", device, "ext4", [])])
    assert found
    assert found.unknown == ("/safe",)
    assert partial_freeze([ROOT, ("/safe", device, "ext4", ["vdb"])]) is None


def test_where_no_device_is_in_doubt_the_agent_is_not_asked_again() -> None:
    def ask() -> BlockDevices:
        raise AssertionError("asked")

    assert partial_freeze([ROOT, ("/data", "vdb", "xfs", ["vdb"]), LOOP], ask)
    volume = r"\\?\Volume{6a2b27c1-0000-0000-0000-100000000000}" + "\\"
    assert partial_freeze([("C:\\", volume, "NTFS", ["vda"])], ask) is None


def test_the_devices_are_read_from_what_libvirt_returns() -> None:
    """Names as libvirt 9 gave them for a real guest."""
    info = {
        "disk.count": 2,
        "disk.0.name": "/dev/vda",
        "disk.0.partition": False,
        "disk.0.alias": "vda",
        "disk.1.name": "/dev/dm-0",
        "disk.1.partition": False,
        "disk.1.dependency.count": 3,
        "disk.1.dependency.0.name": "/dev/vda",
        "disk.1.dependency.1.name": "/dev/loop0",
        "disk.1.dependency.2.name": "/dev/etherd/e1.0",
        "fs.count": 2,
        "fs.0.mountpoint": "/",
        "fs.0.disk.count": 1,
        "fs.0.disk.0.device": "/dev/vda",
        "fs.1.mountpoint": "/safe",
        "fs.1.disk.count": 0,
    }
    assert block_devices(info) == BlockDevices({"vda": [], "dm-0": ["vda", "loop0", "etherd!e1.0"]}, {"/"})
    assert block_devices({}) == BlockDevices({}, set())
