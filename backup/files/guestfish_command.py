"""The commands that guestfish is given, whose arguments a hostile guest may have chosen.

guestfish gives the host's shell what follows a bare |, and a line that begins with !; what is behind a line
break, or behind the end of its buffer, is another command. So every argument is quoted and checked here, and
what talks to guestfish takes nothing but a Command.
"""

from __future__ import annotations

import re

from ..errors import BackupError

NAME = re.compile(r"[a-z][a-z0-9-]*")
PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"
LINE_LIMIT = 8189  # bytes; guestfish reads into 8192, with minus, line break and NUL (fish.c, rl_gets)
DEVICE = re.compile(r"/dev/[\w./+:-]+", re.ASCII)  # LVM, which reads any name, creates none with others


class Command:
    """A command by its name, with arguments of any bytes; `key` is the passphrase that it asks for."""

    def __init__(self, name: str, *arguments: bytes, key: str = "") -> None:
        """Raises BackupError if guestfish could not read it as what it is."""
        line = " ".join([name, *map(quoted, arguments)])
        if not NAME.fullmatch(name) or "\n" in key or "\0" in key:
            raise BackupError(
                f"{name!r} with its key is no command of guestfish", "this is a defect: report it"
            )
        if len(line) > LINE_LIMIT:
            raise BackupError("a path is too long for guestfish", "`mount` shows the disks as files")
        # with a minus it goes on after an error; it reads a key from the next line
        self.lines = f"-{line}\n{key}\n" if key else f"-{line}\n"


def quoted(argument: bytes) -> str:
    """Return an argument in quotes, guestfish(1), "QUOTING". Raises BackupError if it has a NUL."""
    if b"\0" in argument:
        raise BackupError("a path has a NUL in it, which no file system allows")
    return '"' + "".join(chr(byte) if byte in PLAIN else f"\\x{byte:02x}" for byte in argument) + '"'


def is_device(path: str) -> bool:
    """Return whether Linux would give a device this name."""
    return bool(DEVICE.fullmatch(path))
