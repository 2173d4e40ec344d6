"""The mounts of a guest, and which of them can be frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Callable

from ..errors import CannotFreeze

Mount = tuple[str, str, str, Sequence[str]]  # where, block device, type, the domain's disks below it

# Kinds of devices that may have their data in a file of the guest, or get it from a program that runs there:
# Linux's names of loop, nbd, ublk, RBD, RNBD, AoE and zvol devices.
GUEST_MADE = ("loop", "nbd", "ublkb", "rbd", "rnbd", "etherd", "zd")
DISKS = ("vd", "sd", "hd", "xvd", "nvme", "mmcblk", "pmem", "sr", "fd")  # and their partitions
WINDOWS = "\\"  # how its names of volumes begin
UNNAMED = "unnamed"  # the place of a disk of which the agent gives no name
STACKED = ("dm-", "md", "drbd", "bcache")  # devices made of others
READ_ONLY = {"squashfs", "iso9660", "erofs", "cramfs", "udf"}  # have nothing to flush


@dataclass(frozen=True)
class PartialFreeze:
    """The mountpoints to freeze, and those to leave, where not all can be frozen.

    `unknown`: those of which nobody knows whether they can.
    """

    freeze: tuple[str, ...]
    leave: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    def require_known(self) -> None:
        """Raise CannotFreeze if a file system may lie in a file of the guest or on a disk.

        Also if there is nothing to freeze.
        """
        if self.unknown:
            message = f"it is not known whether {', '.join(self.unknown)} is in a file of the guest"
            hint = "then it must not be frozen; qemu-guest-agent 5.2 in the guest lists what it is made of"
            raise CannotFreeze(message, hint)
        if not self.freeze:  # no mountpoint at all means every one to libvirt
            message = (
                f"all that could be frozen is mounted below {', '.join(self.leave)}, in files of the guest"
            )
            raise CannotFreeze(message, "those must not be frozen; mount what they hide elsewhere, too")


@dataclass(frozen=True)
class BlockDevices:
    """The guest's block devices: what each is made of, and the mountpoints that are on disks of any kind."""

    made_of: Mapping[str, Sequence[str]] = field(default_factory=dict)
    on_disks: Set[str] = frozenset()

    def guest_made(self) -> Sequence[str]:
        """Return those among them that may be in files of the guest."""
        return [one for one in self.made_of if one.startswith(GUEST_MADE)]

    def contain_guest_made(self, device: str) -> bool | None:
        """Return whether a device is, or is made of, one that may be in a file; None if that is unknown."""
        below = [device]
        for one in below:  # grows meanwhile
            below += [part for part in self.made_of.get(one, ()) if part not in below]
        if any(one.startswith(GUEST_MADE) for one in below):
            return True
        lowest = [one for one in below if not self.made_of.get(one)]
        return None if not lowest or any(one.startswith(STACKED) for one in lowest) else False


def block_devices(info: Mapping[str, Any]) -> BlockDevices:
    """Return the block devices of a guest from the answers of virDomain.guestInfo."""
    made_of = {
        _device(info.get(f"disk.{disk}.name", UNNAMED)): [
            _device(info.get(f"disk.{disk}.dependency.{part}.name", UNNAMED))
            for part in range(info.get(f"disk.{disk}.dependency.count", 0))
        ]
        for disk in range(info.get("disk.count", 0))
    }
    mounts = range(info.get("fs.count", 0))
    on_disks = {
        info.get(f"fs.{mount}.mountpoint", "") for mount in mounts if info.get(f"fs.{mount}.disk.count")
    }
    return BlockDevices(made_of, on_disks)


def required_text(value: Any) -> str:
    """Return a string that a guest gave. Raises TypeError, ValueError if it is none that can be shown."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of a text")
    value.encode()  # half a surrogate pair can be in JSON, but not in a log
    return value


def listed_mounts(info: Any) -> Sequence[Mount]:
    """Return the mounts that virDomain.fsInfo lists. Raises TypeError, ValueError if it is no such list."""
    return [
        (required_text(place), required_text(device), required_text(kind), [*map(required_text, disks)])
        for place, device, kind, disks in info
    ]


def agent_mounts(info: Any) -> Sequence[Mount]:
    """Return the mounts that an agent's answer to guest-get-fsinfo lists, each with the disks below it.

    Raises AttributeError, LookupError, TypeError, ValueError if it is no such list: a guest can answer
    anything.
    """
    return listed_mounts(
        (
            mount["mountpoint"],
            mount["name"],
            mount["type"],
            [_device(required_text(disk.get("dev", UNNAMED))) for disk in mount["disk"]],
        )
        for mount in info
    )


def _device(path: str) -> str:
    """Return the kernel's name of a device, as mounts have it, by its path."""
    return path.removeprefix("/dev/").replace("/", "!")


def partial_freeze(
    mounts: Sequence[Mount], list_devices: Callable[[], BlockDevices] = BlockDevices
) -> PartialFreeze | None:
    """Return what to freeze of the mounts that the guest agent lists, None for all.

    A file system in a file is left: to freeze it, the kernel writes to the file, which blocks for ever where
    the file's own file system is frozen already, and with it the agent, the only one who could thaw. The
    agent freezes in the reverse order of mounts, so this happens where that was mounted again later (bind).
    The same goes for one that gets its data from a program of the guest, which may have to write to a file.

    libvirt names the domain's disks below a mount, but not all kinds of them: `list_devices` is asked for any
    device but a disk or its partition. What it is made of stays unknown with an old agent; where no disk at
    all is known, that says nothing.
    """
    doubtful = any(not device.startswith((*DISKS, *GUEST_MADE, WINDOWS)) for _, device, _, _ in mounts)
    devices = list_devices() if doubtful else BlockDevices()
    disks_known = any(disks for _, _, _, disks in mounts) or bool(devices.made_of or devices.on_disks)
    freeze: list[str] = []
    leave: list[str] = []
    unknown: list[str] = []
    for mount in mounts:
        place, _, kind, _ = mount
        in_file = _is_in_file(mount, devices)
        if in_file is False or (in_file is None and not disks_known):
            freeze.append(place)
        elif kind not in READ_ONLY:
            (leave if in_file else unknown).append(place)
    if not unknown and not (leave and freeze):
        return None
    left = set(leave)  # a place where two are mounted has only the upper one
    return PartialFreeze(tuple(one for one in freeze if one not in left), tuple(leave), tuple(unknown))


def _is_in_file(mount: Mount, devices: BlockDevices) -> bool | None:
    """Return whether a mount is on a device that may be in a file of the guest; None if that is unknown."""
    place, device, _, disks = mount
    if any(one.startswith(GUEST_MADE) for one in disks):
        return True
    contains = devices.contain_guest_made(device)
    return False if contains is None and (disks or place in devices.on_disks) else contains
