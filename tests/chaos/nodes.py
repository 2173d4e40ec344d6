"""The nodes: directories and a host name of their own each, and main.py run on them as systemd would."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.chaos import processes
from tests.chaos.own_points import KEEP_LAST
from tests.chaos.plan import Order
from tests.lab import Lab
from tests.lab.programs import ENVIRONMENT
from tests.quick_repository import PASSWORD

ROOT = Path(__file__).parents[2]
PYTHON = "/usr/bin/python3"  # the distribution's: rados and rbd exist for no other
HOST = 'hostname "$0"; exec "$@"'
SFTP_SERVER = "/usr/lib/openssh/sftp-server"  # in the place of ssh, which would start it on another host
# What restic is started by. One stays its parent, the other moves it to a process group of its own, too.
WRAPPED = {"sh": 'restic "$@"; exit $?', "timeout": 'exec timeout 3600 restic "$@"'}
STACKS_LIMIT = 5  # seconds for a worker to print the stacks of its threads
FREEZE_TIMEOUT = 8
LOCK_DURATION = 15
CONSTANTS: Mapping[str, Any] = {
    "FREEZE_TIMEOUT": FREEZE_TIMEOUT,
    "CEPH_TIMEOUT": 10,
    "LIBVIRT_TIMEOUT": 10,
    "LOCK_DURATION": LOCK_DURATION,
    "LOCK_WAIT": 20,
    "OUTPUT_STALL_TIMEOUT": 60,
    "DRILL_POOL": "ssd",
    "CEPH_STALL_TIMEOUT": 60,
    "RETRY_FOR": 20,
    "AGENT_BOOT_TIMEOUT": 3,
}


@dataclass
class Running:
    """A command that was started: its order, its process, where its words go, and when it ended."""

    order: Order
    node: Node
    process: subprocess.Popen[bytes]
    base: Path  # its files have this name, with an ending each
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    @property
    def report(self) -> Path:
        return self.base.with_suffix(".report")

    @property
    def words(self) -> str:
        """What it has written to standard error."""
        return self.base.with_suffix(".stderr").read_text(errors="replace")

    @property
    def code(self) -> int | None:
        return self.process.returncode

    def wait(self, seconds: float) -> bool:
        """Wait for its end; tell whether it came."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self.ended = self.ended or time.monotonic()
        return True

    def __str__(self) -> str:
        return f"{self.order.node} {self.order.command} (exit code {self.code})"


class Node:
    """A node: RUNTIME_DIR, STATE_DIR and host name of its own, on the one libvirt and cluster."""

    def __init__(self, lab: Lab, name: str, directory: Path, repositories: Mapping[str, Path]) -> None:
        """`repositories` are by the names of the outputs."""
        self.name = name
        self.directory = directory
        self.runtime_dir, self.state_dir = directory / "runtime", directory / "state"
        self.temporary = directory / "tmp"
        self.temporary.mkdir(parents=True)
        self.drill_dir = directory / "drill"
        self.drill_dir.mkdir(mode=0o711)  # QEMU's user gets there
        self.password_file = directory / "password"
        self.password_file.write_text(PASSWORD)
        self.password_file.chmod(0o600)
        self._ceph_conf = str(lab.ceph_conf)
        self._repositories = repositories

    def start(self, order: Order, base: Path) -> Running:
        """Start a command; its settings, words and report go to files that begin with `base`."""
        settings = base.with_suffix(".py")
        settings.write_text("".join(f"{name} = {value!r}\n" for name, value in self._constants(order, base)))
        settings.chmod(0o600)
        command = [
            PYTHON,
            str(ROOT / "main.py"),
            "--log-level",
            "debug",
            "--config",
            str(settings),
            *order.words,
        ]
        with base.with_suffix(".stdout").open("wb") as out, base.with_suffix(".stderr").open("wb") as err:
            process = subprocess.Popen(
                ["unshare", "--uts", "sh", "-c", HOST, self.name, *command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        return Running(order, self, process, base)

    def cleanup(self, base: Path, after: Order | None = None) -> Running:
        """Start what ExecStopPost does, with the settings of the order before it."""
        before = after or Order(self.name, (), 0, {"OUTPUT": "restic"})
        return self.start(replace(before, words=("cleanup",), after=0), base)

    def records(self) -> list[Path]:
        """Give the records of guests that are, or are about to be, quiesced."""
        return sorted(self.runtime_dir.glob("held/*.json"))

    @property
    def noted(self) -> set[str]:
        """Give the restore points that failed, and that the next run removes: RUN.UUID.ATTEMPT."""
        return {path.name for path in self.state_dir.glob("failed-points/*")}

    def kill_all(self) -> None:
        """Kill what is left of this node's processes; workers print first where each of their threads is."""
        workers = processes.of_roles(self.directory).get("worker", [])
        for one in workers:
            processes.send(one.pid, signal.SIGABRT)
        deadline = time.monotonic() + STACKS_LIMIT
        while any(processes.alive(one.pid) for one in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        for one in processes.ours(self.directory):
            processes.send(one.pid, signal.SIGKILL)

    @property
    def _environment(self) -> Mapping[str, str]:
        """Name this node's directory in all of its processes' environments."""
        return {**ENVIRONMENT, "TMPDIR": str(self.temporary), "RESTIC_CACHE_DIR": f"{self.directory}/cache"}

    def _constants(self, order: Order, base: Path) -> list[tuple[str, Any]]:
        known = re.findall(r"^([A-Z_]+) =", (ROOT / "config.py").read_text(), re.MULTILINE)
        own = {
            "CEPH_CONF": self._ceph_conf,
            "RESTIC_PASSWORD_FILE": str(self.password_file),
            "RUNTIME_DIR": str(self.runtime_dir),
            "STATE_DIR": str(self.state_dir),
            "DRILL_DIR": str(self.drill_dir),
            "REPORT_FILE": str(base.with_suffix(".report")),
            **{name: value for name, value in CONSTANTS.items() if name in known},
            **order.constants,
        }
        if order.wrapper:
            own["RESTIC_BINARY"] = str(self._wrapper(order.wrapper))
        return [*{**own, **self._repository(own.get("OUTPUT", "restic"), order.remote)}.items()]

    def _repository(self, output: str, remote: bool) -> Mapping[str, Any]:
        place = str(self._repositories[output])
        if output == "rbd":
            return {"RBD_OUTPUT_POOL": place, "KEEP_LAST": KEEP_LAST}
        if output == "directory":
            return {"DIRECTORY_OUTPUT": place, "KEEP_LAST": KEEP_LAST}
        if remote:
            options = [f"--option=sftp.command={SFTP_SERVER}"]
            return {"RESTIC_REPOSITORY": f"sftp:another-host:{place}", "RESTIC_OPTIONS": options}
        return {"RESTIC_REPOSITORY": place}

    def _wrapper(self, kind: str) -> Path:
        path = self.directory / f"restic-in-{kind}"
        if not path.exists():
            path.write_text(f"#!/bin/sh\n{WRAPPED[kind]}\n")
            path.chmod(0o700)
        return path
