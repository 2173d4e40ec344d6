"""Encrypted disks (LUKS): the key in a file, and opening them in the virtual machine of libguestfs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from ..errors import BackupError, ConfigError, reason
from .guestfish_command import Command, is_device
from .volumes import ENCRYPTED

LISTS = ("list-devices", "list-partitions", "list-md-devices", "lvs")  # of what may be encrypted
MAPPED = "/dev/mapper/"


def key_in(path: str) -> str:
    """Return the passphrase in a file, without the line break at its end. Raises ConfigError."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise _wrong(f"cannot read the key {path}: {reason(error)}", "--key needs a file") from error
    key = content[:-1] if content.endswith(b"\n") else content
    if not key or b"\n" in key or b"\0" in key:  # guestfish reads a line
        hint = "for a key of any bytes: `mount`, and `cryptsetup open --readonly --key-file`"
        raise _wrong(f"the key {path} is not a passphrase in one line", hint)
    return key.decode(errors="surrogateescape")


@dataclass
class Encrypted:
    """The encrypted devices of a running guestfish, which `ask` gives commands."""

    ask: Callable[..., bytes]
    opened: dict[str, str] = field(default_factory=dict)  # by what it is now: the device that was opened
    locked: dict[str, str] = field(default_factory=dict)  # by device: why it was not opened

    def open_all(self, key: str) -> None:
        """Open all with a key, volumes of LVM on those that were opened too; without a key find them only."""
        while found := [device for device in self._devices() if device not in self._known]:
            for device in found:
                self._open(device, key)
            if key:
                self.ask(Command("lvm-scan", b"true"))

    @property
    def _known(self) -> Sequence[str]:
        return [*self.opened.values(), *self.locked]

    def _open(self, device: str, key: str) -> None:
        name = f"opened{len(self.opened)}"
        self.locked[device] = "there is no key"
        if not key:
            return
        try:
            # every version of guestfish has this command, so none takes the key for one
            self.ask(Command("luks-open-ro", os.fsencode(device), name.encode(), key=key))
        except BackupError as error:
            self.locked[device] = error.message
        else:
            del self.locked[device]
            self.opened[f"{MAPPED}{name}"] = device

    def _devices(self) -> Sequence[str]:
        listed = os.fsdecode(self.ask(*map(Command, LISTS))).split("\n")
        return [device for device in listed if is_device(device) and self._kind(device) == ENCRYPTED]

    def _kind(self, device: str) -> str:
        try:
            return self.ask(Command("vfs-type", os.fsencode(device))).decode(errors="replace").strip()
        except BackupError:  # nothing that it knows
            return ""


def _wrong(message: str, hint: str) -> ConfigError:
    return ConfigError([BackupError(message, hint)])
