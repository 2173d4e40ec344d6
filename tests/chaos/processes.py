"""Our processes: found by the node's directory in their environments, told apart by what they do."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One that lives, and what it is: main, worker, watchdog, restic, or another program."""

    pid: int
    parent: int
    line: str
    role: str

    def __str__(self) -> str:
        return f"{self.role} {self.pid} ({self.line[:60].strip()})"


def ours(directory: Path) -> list[Process]:
    """Find all of a node's processes: its directory is named in the environment of each, restic's too."""
    mark = str(directory).encode() + b"/"
    return [one for one in _all() if mark in _read(one.pid, "environ") or mark.decode() in one.line]


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
            yield Process(pid, int(status[1]), line, _role(line))


def _role(line: str) -> str:
    """Tell it by the title that each of ours gives itself, or by the words that it was started with."""
    program = os.path.basename(line.split(" ")[0])
    if line.startswith("virt-rbd-backup: watchdog"):
        return "watchdog"
    if (line.startswith("virt-rbd-backup: ") and line.split()[1] in COMMANDS) or "/main.py " in line:
        return "main"
    if line.startswith("virt-rbd-backup: ") or "spawn_main" in line:
        return "worker"
    return "restic" if program == "restic" else program


COMMANDS = ("backup", "restore", "verify", "drill", "cleanup", "check", "restore-points")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
