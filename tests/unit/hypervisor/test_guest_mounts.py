"""backup/hypervisor/guest_mounts.py: file systems in files of the guest are not frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from backup.hypervisor.guest_mounts import Mount, partial_freeze

ROOT: Mount = ("/", "vda1", "ext4", ["vda"])
DATA: Mount = ("/data", "dm-0", "xfs", ["vdb"])
LOOP: Mount = ("/tmp", "loop0", "ext4", [])
SNAP: Mount = ("/snap/core/1", "loop7", "squashfs", [])

CASES: Mapping[str, tuple[Sequence[Mount], Sequence[str], Sequence[str]]] = {
    "a loop file": ([ROOT, LOOP, DATA], ["/", "/data"], ["/tmp"]),
    "its file system mounted again": ([ROOT, LOOP, ("/b", "vda1", "ext4", ["vda"])], ["/", "/b"], ["/tmp"]),
    "a partition of a loop file": ([ROOT, ("/p", "loop0p1", "xfs", [])], ["/"], ["/p"]),
    "encrypted, in a file": ([ROOT, ("/safe", "dm-3", "ext4", [])], ["/"], ["/safe"]),
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
