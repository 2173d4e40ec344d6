"""What a command costs: time, processor time of restic and of the others, memory."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL = 0.05  # seconds between two looks at memory
COMMAND = 15  # characters of a program's name that the kernel keeps (man 5 proc)

# restic with its processor time noted, a line a call: user and system seconds of its own and of its children.
TIMED_RESTIC = """#!/bin/bash
TIMEFORMAT='%U %S'
{{ time "{restic}" "$@" 2>&3; }} 3>&2 2>>"{notes}"
"""


@dataclass(frozen=True)
class Cost:
    """In seconds of time, seconds of processor, bytes of memory (the largest process but restic)."""

    seconds: float
    restic_cpu: float
    own_cpu: float
    memory: int


@dataclass(frozen=True)
class TimedRestic:
    """A restic program that notes what it takes. `name` is what its processes are called."""

    path: Path
    notes: Path
    name: str

    @classmethod
    def made(cls, restic: str, directory: Path) -> TimedRestic:
        timed = cls(directory / "timed-restic", directory / "restic-times", Path(restic).name[:COMMAND])
        timed.path.write_text(TIMED_RESTIC.format(restic=restic, notes=timed.notes))
        timed.path.chmod(0o755)
        return timed

    def taken(self) -> float:
        """Give the processor time since the last look."""
        if not self.notes.exists():
            return 0.0
        taken = sum(float(number) for line in self.notes.read_text().splitlines() for number in line.split())
        self.notes.unlink()
        return taken


def measured(command: Sequence[str], environment: Mapping[str, str], restic: TimedRestic) -> Cost:
    """Run a command to its end. Raises CalledProcessError with what it said, if it fails."""
    restic.taken()
    log = restic.path.with_name("log")
    memory = 0
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            memory = max(memory, _largest(process.pid, restic.name))
            time.sleep(POLL)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, log.read_bytes())
    restic_cpu = restic.taken()
    return Cost(seconds, restic_cpu, usage.ru_utime + usage.ru_stime - restic_cpu, memory)


def _largest(top: int, restic: str) -> int:
    """Give the resident bytes of the largest process below this one, restic aside."""
    parents, resident = {}, {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            lines = (directory / "status").read_text().splitlines()
        except OSError:
            continue
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        pid = int(directory.name)
        parents[pid] = int(fields["PPid"])
        if fields["Name"] != restic and "VmRSS" in fields:
            resident[pid] = 1024 * int(fields["VmRSS"].split()[0])
    return max((size for pid, size in resident.items() if _is_below(pid, top, parents)), default=0)


def _is_below(pid: int, top: int, parents: Mapping[int, int]) -> bool:
    while pid in parents and pid != top:
        pid = parents[pid]
    return pid == top
