"""A machine with a systemd of its own: this one's files, but all that is written to them is thrown away."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.programs import ENDS_WITH_US, ENVIRONMENT, wait_until

BOOT = Path(__file__).with_name("boot_systemd.sh")


@dataclass(frozen=True)
class Machine:
    """Process 1 of the machine, by its pid here."""

    systemd: int

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end; standard error goes where standard output does."""
        within = ("nsenter", f"--target={self.systemd}", "--mount", "--pid", "--ipc", "--uts")
        return subprocess.run(
            [*ENDS_WITH_US, *within, *words],
            env=ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )


@contextmanager
def machine(log: Path) -> Iterator[Machine]:
    """Have one that is up, with the lab's libvirt; what systemd says goes to the log."""
    command = [*ENDS_WITH_US, "unshare", "--mount", "--propagation", "private", str(BOOT)]
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=output) as outer,
    ):
        try:
            wait_until(lambda: bool(_systemd(outer.pid)), 120, "systemd starts", log)
            booted = Machine(_systemd(outer.pid))
            start = ("systemctl", "start", "systemd-journald.service")
            wait_until(lambda: booted.run(*start).returncode == 0, 120, "systemd answers", log)
            yield booted
        finally:
            if pid := _systemd(outer.pid):
                os.kill(
                    pid, signal.SIGKILL
                )  # and with it all that runs there; what started it then tidies up
            try:
                outer.wait(120)
            finally:
                outer.kill()


def _systemd(pid: int) -> int:
    """Find it below a process, 0 if it has not come so far."""
    try:
        while pid and Path(f"/proc/{pid}/comm").read_text() != "systemd\n":
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pid = int(children[0]) if children else 0
    except (FileNotFoundError, ProcessLookupError):  # a mount or the like, which has just ended
        return 0
    return pid
