"""Our processes: found by the node's directory in their environments, told apart by what they do."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One that lives, and its role: main, worker, watchdog, restic, keeper, wrapper, or another program.

    The keeper is the shell beside a restic that reads our files, the wrapper what restic was started by.
    The file system of these files is a thread of the worker, that of `restic mount` a restic.
    """

    pid: int
    parent: int
    group: int
    stopped: bool
    line: str
    role: str

    def __str__(self) -> str:
        return f"{self.role} {self.pid} ({self.line[:60].strip()})"


def ours(directory: Path) -> list[Process]:
    """Find all of a node's processes: its directory is named in the environment of each, restic's too.

    Not in a keeper's, which is known by its parent or its restic's group. An orphan counts for each node.
    """
    everything = [*_all()]
    named = [one for one in _named(directory, everything) if one.role != GUEST]
    pids, groups = {one.pid for one in named} | {1}, {one.group for one in named}
    keepers = [one for one in everything if one.role == "keeper" and one not in named]
    return named + [one for one in keepers if one.parent in pids or one.group in groups]


def guests(directory: Path) -> list[Process]:
    """Find the QEMUs that libvirt has started for a node's instant restores and drills: they name our socket.

    That of a restore goes on when its command has ended.
    """
    return [one for one in _named(directory, _all()) if one.role == GUEST]


def _named(directory: Path, processes: Iterable[Process]) -> list[Process]:
    mark = str(directory).encode() + b"/"
    return [one for one in processes if mark in _read(one.pid, "environ") or mark.decode() in one.line]


def of_roles(directory: Path) -> Mapping[str, list[Process]]:
    """Give a node's processes by their roles."""
    found: dict[str, list[Process]] = {}
    for one in ours(directory):
        found.setdefault(one.role, []).append(one)
    return found


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; tell whether the process was there."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def alive(pid: int) -> bool:
    """Tell whether a process lives, zombies excluded."""
    status = _read(pid, "stat").rpartition(b")")[2].split()
    return bool(status) and status[0] not in (b"Z", b"X")


def _all() -> Iterator[Process]:
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        status = _read(pid, "stat").rpartition(b")")[2].split()
        if status and status[0] not in (b"Z", b"X") and pid != os.getpid():
            line = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")
            parent, group = map(int, status[1:3])
            yield Process(pid, parent, group, status[0] in (b"T", b"t"), line, role_of(line))


def role_of(line: str) -> str:
    """Tell it by the title that each of ours gives itself, or by the words that it was started with."""
    program = os.path.basename(line.split(" ")[0])
    if line.startswith("virt-rbd-backup: watchdog"):
        return "watchdog"
    if (line.startswith("virt-rbd-backup: ") and line.split()[1] in COMMANDS) or "/main.py " in line:
        return "main"
    if line.startswith("virt-rbd-backup: ") or "spawn_main" in line:
        return "worker"
    if line.startswith(KEEPER):
        return "keeper"
    return "wrapper" if program in WRAPPERS or f"/{SHELL_WRAPPER} " in line else program


GUEST = "qemu-system-x86_64"
KEEPER = "sh -c trap '' HUP INT TERM"
SHELL_WRAPPER = "restic-in-sh"  # a script's name
WRAPPERS = ("timeout", SHELL_WRAPPER)
COMMANDS = ("backup", "restore", "verify", "drill", "cleanup", "check", "restore-points")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
