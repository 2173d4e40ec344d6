"""The mounts of a guest, and which of them can be frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Mount = tuple[str, str, str, Sequence[str]]  # where, block device, type, the domain's disks below it

LOOP = "loop"
STACKED = ("dm-", "md")  # devices made of others
READ_ONLY = {"squashfs", "iso9660", "erofs", "cramfs", "udf"}  # of loop devices: have nothing to flush


@dataclass(frozen=True)
class PartialFreeze:
    """The mountpoints to freeze, and those to leave, where not all can be frozen."""

    freeze: tuple[str, ...]
    leave: tuple[str, ...]


def partial_freeze(mounts: Sequence[Mount]) -> PartialFreeze | None:
    """Return what to freeze of the mounts that the guest agent lists, None for all.

    A file system in a file is left: to freeze it, the kernel writes to the file, which blocks for ever where
    the file's own file system is frozen already, and with it the agent, the only one who could thaw. The
    agent freezes in the reverse order of mounts, so this happens where that was mounted again later (bind).
    """
    on_disks = any(disks for _, _, _, disks in mounts)
    inside = {place for place, device, _, disks in mounts if _is_in_file(device, disks, on_disks)}
    leave = [place for place, _, kind, _ in mounts if place in inside and kind not in READ_ONLY]
    freeze = [place for place, _, _, _ in mounts if place not in inside]
    return PartialFreeze(tuple(freeze), tuple(leave)) if leave and freeze else None


def _is_in_file(device: str, disks: Sequence[str], on_disks: bool) -> bool:
    """Return whether a device is a loop device, or may be made of some.

    The disks below a stacked device are known, if they are the domain's, unless no disk is known at all.
    """
    return device.startswith(LOOP) or (device.startswith(STACKED) and not disks and on_disks)
