"""The directories of the system: its programs, what it carries out by itself, and what it trusts.

Somebody who can write to the repository could make a restore point that brings a file there, as a kernel.
"""

from __future__ import annotations

import os
import re

SYSTEM = (
    "/etc",
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/root",
    "/home",
    "/run",
    "/boot/efi",
    "/boot/grub",
    "/boot/grub2",
    "/boot/loader",
    "/var/lib/dpkg",
    "/var/lib/polkit-1",
    "/var/lib/systemd",
    "/var/spool",
    "/dev",
    "/proc",
    "/sys",
)
# Where packages, and admins, have the firmware of guests.
FIRMWARE = re.compile(
    r"/usr/(local/)?share/(OVMF|ovmf|AAVMF|edk2[\w-]*|ipxe|kvm|qemu|qemu-efi[\w-]*|qemu-kvm|seabios)/"
)


def in_system(path: str, state_dir: str, firmware: bool) -> bool:
    """Return whether a file's directory is one of the system, wherever symbolic links and .. lead.

    `state_dir` is one too: records there name files to remove. `firmware`: whether those of the firmware of
    guests are.
    """
    directory = f"{os.path.realpath(os.path.dirname(path))}/"
    if not firmware and FIRMWARE.match(directory):
        return False
    return directory.startswith(tuple(f"{os.path.realpath(one)}/" for one in (*SYSTEM, state_dir)))
