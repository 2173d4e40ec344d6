"""A node with a restore point in its repository, and `main.py mount` as an admin runs it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from outputs.restic import Restic
from outputs.restic_incremental import ResticIncremental

from ..jobs_on_paper import JobOnPaper
from ..memory_snapshot import MemorySnapshot, MemorySource
from ..program_node import MAIN, PYTHON, Node
from ..samples import domain, rbd_disk, restore_point
from ..waiting import wait_until

OUTPUTS = ("restic", "restic_incremental")
START = 60  # seconds under load
NVRAM = b"variables of the firmware"


def save(node: Node, output: str, snapshots: Mapping[str, MemorySnapshot], name: str = "web") -> None:
    """Save a domain's disks, given by their targets, with an output."""
    sources = [MemorySource(one, rbd_disk(target, f"vms/{target}")) for target, one in snapshots.items()]
    point = restore_point(domain(name, disks=[source.disk for source in sources]))
    point = replace(point, definition=replace(point.definition, nvram_path="/nvram", nvram=NVRAM))
    program = node.repository.program()
    if output == "restic":
        Restic(program).save(point, sources, JobOnPaper())
    else:
        ResticIncremental(program, mountpoint=str(node.directory / "segments")).save(
            point, sources, JobOnPaper()
        )


class Running:
    """A `main.py mount` in the foreground."""

    def __init__(self, node: Node, directory: Path, *options: str) -> None:
        self.node = node
        self.directory = directory
        self._errors = node.directory / "errors"
        self._printed = node.directory / "printed"
        environment = {**os.environ, "VIRT_RBD_BACKUP_CONFIG": str(node.settings)}
        with self._printed.open("w") as printed, self._errors.open("w") as errors:
            command = [PYTHON, str(MAIN), "mount", "web", str(directory), *options]
            self.process = subprocess.Popen(command, stdout=printed, stderr=errors, env=environment)
        wait_until(lambda: self.printed or self.process.poll() is not None, START, "it is ready")
        assert self.printed, self.errors

    @property
    def printed(self) -> str:
        return self._printed.read_text()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    @property
    def restic(self) -> int:
        """The pid of its restic."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        (pid,) = [int(one) for task in tasks for one in (task / "children").read_text().split()]
        return pid

    def end(self, number: signal.Signals) -> int:
        """Send a signal to it, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(START)


@contextmanager
def mounted(node: Node, directory: Path, *options: str) -> Iterator[Running]:
    """Have a restore point mounted during the block; afterwards nothing of it is left."""
    running = Running(node, directory, *options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)
        with suppress(OSError):
            subprocess.run(["umount", "--lazy", directory], stderr=subprocess.DEVNULL, check=False)


def is_mounted(directory: Path) -> bool:
    escaped = str(directory).replace(" ", r"\040")
    return f" {escaped} " in Path("/proc/self/mountinfo").read_text()


def unlocked(node: Node) -> None:
    """Wait until restic, whose parent was killed, has removed its lock."""
    wait_until(lambda: not node.repository.locks(), START, "restic has removed its lock")
