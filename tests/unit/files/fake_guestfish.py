#!/usr/bin/python3
"""Stands in for guestfish, whose virtual machine takes half a minute: reads directories beside itself.

Each directory is a file system: sda1 is /dev/sda1, vg+lv is /dev/vg/lv, btrfsvol:sda1+sub is a subvolume of
/dev/sda1. One named broken cannot be mounted, luks+sda1 is what /dev/sda1 has encrypted with KEY.
What is named unreadable cannot be described.

It reads its commands as guestfish 1.48 does, in lines that end where its buffer ends, and has the shell
execute what that does.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Optional

ALL = {
    re.sub("^(btrfsvol:)?", r"\1/dev/", path.name.replace("+", "/")): path
    for path in Path(__file__).parent.iterdir()
    if path.is_dir()
}
SYSTEMS = {device: path for device, path in ALL.items() if not device.startswith("/dev/luks/")}
ENCRYPTED = {device.replace("/luks/", "/"): path for device, path in ALL.items() if device not in SYSTEMS}
KEY = "öpen sesame; !exit"
FIELDS = ("dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size")


LINE = 8191  # bytes
ARGUMENTS = {"luks-open-ro": 2, "mount-ro": 2, "vfs-type": 1, "realpath": 1, "readlink": 1, "lstatns": 1}
WORD = re.compile(
    rb"""[ \t]*(?: "((?:[^"\\]|\\.)*)"(?=[ \t]|$) | '([^']*)'(?=[ \t]|$) | ([^ \t|"'][^ \t]*) )""",
    re.X | re.S,
)


def unquoted(text: bytes) -> bytes:
    return re.sub(rb"\\(?:x([0-9a-f]{2})|(.))", lambda at: bytes([int(at[1], 16)]) if at[1] else at[2], text)


def words(text: bytes) -> tuple[list[bytes], Optional[bytes]]:
    """Split arguments from each other, and from a command of the shell."""
    found: list[bytes] = []
    while text := text.lstrip(b" \t"):
        if text.startswith(b"|"):
            return found, text[1:]
        word = WORD.match(text)
        if not word:
            raise OSError(22, "unterminated quote, or arguments not separated by whitespace")
        found.append(unquoted(word[1]) if word[1] is not None else word[2] or word[3] or b"")
        text = text[word.end() :]
    return found, None


class Fake:
    def __init__(self) -> None:
        self.root = b""

    def place(self, argument: bytes) -> bytes:
        return self.root + argument

    def line(self, line: bytes) -> bytes:
        """Execute a line and return what it prints."""
        if line.startswith((b"!", b"<!")):
            return subprocess.check_output(line.lstrip(b"<!"), shell=True)
        name, _, rest = line.partition(b" ")
        arguments, shell = words(rest)
        command = name.decode(errors="replace")
        if ARGUMENTS.get(command, len(arguments)) != len(arguments):
            raise OSError(22, f"command '{command}' should have {ARGUMENTS[command]} parameters")
        output = self.execute(command, *arguments)
        return output if shell is None else subprocess.check_output(shell, shell=True, input=output)

    def execute(self, command: str, *arguments: bytes) -> bytes:
        if command == "echo":
            return b" ".join(arguments) + b"\n"
        return self.of_devices(command, *arguments) or self.of_files(command, *arguments)

    def of_devices(self, command: str, *arguments: bytes) -> bytes:
        if command == "list-filesystems":
            return os.fsencode("".join(f"{one}: xfs\n" for one in sorted(SYSTEMS))) + b"/dev/sda9: swap\n"
        if command == "list-partitions":
            return os.fsencode("".join(f"{one}\n" for one in sorted({*SYSTEMS, *ENCRYPTED})))
        if command == "vfs-type":
            return b"crypto_LUKS\n" if os.fsdecode(arguments[0]) in ENCRYPTED else b"xfs\n"
        if command == "luks-open-ro":
            if sys.stdin.buffer.readline() != f"{KEY}\n".encode():
                raise OSError(22, "cryptsetup exited with status 2: No key available with this passphrase.")
            SYSTEMS[f"/dev/mapper/{arguments[1].decode()}"] = ENCRYPTED[os.fsdecode(arguments[0])]
        if command == "mount-ro":
            system = SYSTEMS[os.fsdecode(arguments[0])]
            if system.name == "broken":
                raise OSError(22, "mount: wrong fs type")
            self.root = os.fsencode(system)
        return b""

    def of_files(self, command: str, *arguments: bytes) -> bytes:
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
            if b"unreadable" in arguments[0]:
                raise OSError(5, "Input/output error")
            return self.described(os.lstat(self.place(arguments[0])))
        return b""

    def described(self, status: os.stat_result) -> bytes:
        size = 4096 if stat.S_ISDIR(status.st_mode) else status.st_size
        values = {**{name: getattr(status, f"st_{name}") for name in FIELDS}, "size": size}
        values.update(mtime_sec=int(status.st_mtime), mtime_nsec=0)
        return "".join(f"st_{name}: {value}\n" for name, value in values.items()).encode()


def main() -> None:
    fake = Fake()
    while line := sys.stdin.buffer.readline(LINE):
        goes_on = line.startswith(b"-")
        try:
            output = fake.line(line.rstrip(b"\n").removeprefix(b"-"))
        except OSError as error:
            name = line.split()[0].decode(errors="replace").removeprefix("-")
            print(f"*stdin*:7: libguestfs: error: {name}: {error.strerror}", file=sys.stderr, flush=True)
            if not goes_on:
                sys.exit(1)
        else:
            sys.stdout.buffer.write(output)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
