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
    [[], [ROOT, DATA], [ROOT, SNAP], [LOOP], [("/", "dm-0", "ext4", []), ("/home", "dm-1", "ext4", [])]],
    ids=["none", "disks", "read-only files", "nothing else", "disks that libvirt does not know"],
)
def test_otherwise_everything_is_frozen(mounts: Sequence[Mount]) -> None:
    assert partial_freeze(mounts) is None


STACKED: Mount = ("/safe", "dm-3", "ext4", [])  # of which libvirt names no disk
MADE_OF: Mapping[str, Mapping[str, Sequence[str]]] = {
    "a file": {"dm-3": ["loop0"]},
    "a file's partition": {"dm-3": ["loop0p2"], "loop0p2": ["loop0"]},
    "encrypted LVM in a file": {"dm-3": ["dm-2"], "dm-2": ["md0"], "md0": ["loop1", "vda3"]},
    "a disk that libvirt does not name": {"dm-3": ["sda2"], "sda2": ["sda"], "sda": []},
    "encrypted LVM on RAID": {"dm-3": ["dm-2"], "dm-2": ["md127"], "md127": ["nvme0n1", "nvme1n1"]},
    "a device mapper without parts": {"dm-3": []},
    "another device": {"dm-7": ["loop0"]},
    "a part that is not listed": {"dm-3": ["dm-2"]},
    "itself": {"dm-3": ["dm-2"], "dm-2": ["dm-3"]},
}


@pytest.mark.parametrize("case", list(MADE_OF)[:3])
def test_a_stacked_device_is_left_where_the_agent_lists_a_loop_device_below_it(case: str) -> None:
    found = partial_freeze([ROOT, STACKED, DATA], lambda: BlockDevices(MADE_OF[case]))
    assert found
    assert (found.freeze, found.leave, found.unknown) == (("/", "/data"), ("/safe",), ())
    found.require_known()


@pytest.mark.parametrize("case", list(MADE_OF)[3:5])
def test_a_stacked_device_on_disks_that_libvirt_does_not_name_is_frozen(case: str) -> None:
    assert partial_freeze([ROOT, STACKED, DATA], lambda: BlockDevices(MADE_OF[case])) is None
    found = partial_freeze([ROOT, STACKED, LOOP], lambda: BlockDevices(MADE_OF[case]))
    assert found
    assert (found.freeze, found.leave) == (("/", "/safe"), ("/tmp",))


def test_an_old_agent_that_names_disks_below_it_is_believed() -> None:
    assert partial_freeze([ROOT, STACKED], lambda: BlockDevices(on_disks={"/", "/safe"})) is None


@pytest.mark.parametrize("case", [None, *list(MADE_OF)[5:]])
def test_a_stacked_device_of_which_nothing_is_known_is_never_left_in_silence(case: str | None) -> None:
    found = partial_freeze([ROOT, STACKED], lambda: BlockDevices(MADE_OF[case] if case else {}))
    assert found
    assert (found.freeze, found.leave, found.unknown) == (("/",), (), ("/safe",))
    message = "it is not known whether /safe is in a file of the guest"
    with raises(message, FreezeFailed):
        found.require_known()


def test_a_read_only_one_of_which_nothing_is_known_has_nothing_to_freeze() -> None:
    assert partial_freeze([ROOT, ("/image", "dm-3", "squashfs", [])]) is None


def test_where_no_stacked_device_is_in_doubt_the_agent_is_not_asked_again() -> None:
    def ask() -> BlockDevices:
        raise AssertionError("asked")

    assert partial_freeze([ROOT, DATA, LOOP], ask)


def test_the_devices_are_read_from_what_libvirt_returns() -> None:
    """Names as libvirt 9 gave them for a real guest."""
    info = {
        "disk.count": 2,
        "disk.0.name": "/dev/vda",
        "disk.0.partition": False,
        "disk.0.alias": "vda",
        "disk.1.name": "/dev/dm-0",
        "disk.1.partition": False,
        "disk.1.dependency.count": 2,
        "disk.1.dependency.0.name": "/dev/vda",
        "disk.1.dependency.1.name": "/dev/loop0",
        "fs.count": 2,
        "fs.0.mountpoint": "/",
        "fs.0.disk.count": 1,
        "fs.0.disk.0.device": "/dev/vda",
        "fs.1.mountpoint": "/safe",
        "fs.1.disk.count": 0,
    }
    assert block_devices(info) == BlockDevices({"vda": [], "dm-0": ["vda", "loop0"]}, {"/"})
    assert block_devices({}) == BlockDevices({}, set())
