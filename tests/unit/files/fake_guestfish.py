#!/usr/bin/python3
"""Stands in for guestfish, whose virtual machine takes half a minute: reads directories beside itself.

Each directory is a file system: sda1 is /dev/sda1, vg+lv is /dev/vg/lv. One named broken cannot be mounted,
luks+sda1 is what /dev/sda1 has encrypted with KEY.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

ALL = {
    f"/dev/{path.name.replace('+', '/')}": path for path in Path(__file__).parent.iterdir() if path.is_dir()
}
SYSTEMS = {device: path for device, path in ALL.items() if not device.startswith("/dev/luks/")}
ENCRYPTED = {device.replace("/luks/", "/"): path for device, path in ALL.items() if device not in SYSTEMS}
KEY = "öpen sesame; !exit"
FIELDS = ("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size")


def unquoted(argument: str) -> bytes:
    text = argument.strip('"')
    return re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), text.encode())


class Fake:
    def __init__(self) -> None:
        self.root = b""

    def place(self, argument: str) -> bytes:
        return self.root + unquoted(argument)

    def execute(self, command: str, *arguments: str) -> bytes:
        if command == "echo":
            return f"{arguments[0]}\n".encode()
        return self.of_devices(command, *arguments) or self.of_files(command, *arguments)

    def of_devices(self, command: str, *arguments: str) -> bytes:
        if command == "list-filesystems":
            return os.fsencode("".join(f"{one}: xfs\n" for one in sorted(SYSTEMS))) + b"/dev/sda9: swap\n"
        if command == "list-partitions":
            return os.fsencode("".join(f"{one}\n" for one in sorted({*SYSTEMS, *ENCRYPTED})))
        if command == "vfs-type":
            return b"crypto_LUKS\n" if arguments[0] in ENCRYPTED else b"xfs\n"
        if command == "luks-open-ro":
            if next(sys.stdin) != f"{KEY}\n":
                raise OSError(22, "cryptsetup exited with status 2: No key available with this passphrase.")
            SYSTEMS[f"/dev/mapper/{arguments[1]}"] = ENCRYPTED[arguments[0]]
        if command == "mount-ro":
            system = SYSTEMS[os.fsdecode(unquoted(arguments[0]))]
            if system.name == "broken":
                raise OSError(22, "mount: wrong fs type")
            self.root = os.fsencode(system)
        return b""

    def of_files(self, command: str, *arguments: str) -> bytes:
        if command == "realpath":
            os.stat(self.place(arguments[0]))
            real = os.path.relpath(os.path.realpath(self.place(arguments[0])), self.root)
            return b"/" + (b"" if real == b"." else real) + b"\n"
        if command == "ls0":
            return b"".join(name + b"\0" for name in os.listdir(self.place(arguments[0])))
        if command == "readlink":
            return os.readlink(self.place(arguments[0])) + b"\n"
        if command == "download":
            return Path(os.fsdecode(self.place(arguments[0]))).read_bytes()
        if command == "lstatns":
            return self.described(os.lstat(self.place(arguments[0])))
        return b""

    def described(self, status: os.stat_result) -> bytes:
        size = 4096 if stat.S_ISDIR(status.st_mode) else status.st_size
        values = {**{name: getattr(status, f"st_{name}") for name in FIELDS}, "size": size}
        values.update(mtime_sec=int(status.st_mtime), mtime_nsec=0)
        return "".join(f"st_{name}: {value}\n" for name, value in values.items()).encode()


def main() -> None:
    fake = Fake()
    for line in sys.stdin:
        command, *arguments = line.rstrip("\n").removeprefix("-").split(" ")
        try:
            output = fake.execute(command, *arguments)
        except OSError as error:
            print(f"*stdin*:7: libguestfs: error: {command}: {error.strerror}", file=sys.stderr, flush=True)
        else:
            sys.stdout.buffer.write(output)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
