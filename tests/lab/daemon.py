"""A background process of the lab that any later process can find again and end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.programs import run_program, wait_until

# The shell notes its own pid before it becomes the daemon: no moment is left
# in which a killed starter would leave a daemon that nobody knows of.
NOTE_PID = 'echo $$ >"$0" && log="$1" && shift && exec "$@" >>"$log" 2>&1 </dev/null'

EXEC_CHECKS = 5
POLITE = (signal.SIGTERM, signal.SIGKILL)


@dataclass(frozen=True)
class Daemon:
    """A command in a session of its own, known by its pid file and its exact arguments."""

    command: tuple[str, ...]
    pid_file: Path
    log_file: Path
    launcher: tuple[str, ...] = ()  # a program that becomes the command in the end

    @property
    def pid(self) -> int | None:
        """The pid, or None when the recorded process is gone or is not ours any more."""
        pid = read_pid(self.pid_file)
        arguments = command_line(pid) if pid else []
        return pid if arguments[-len(self.command) :] == list(self.command) else None

    def start(self) -> None:
        if self.pid is not None:
            raise LabError(f"{self.command[0]} runs already, with pid {self.pid}")
        self.pid_file.unlink(missing_ok=True)
        note_pid = ("sh", "-c", NOTE_PID, str(self.pid_file), str(self.log_file))
        # The OSD of Debian 13 looks for its classes in a relative path that is right from the root.
        command = (*note_pid, *self.launcher, *self.command)
        run_program("setsid", "--fork", *command, directory=Path("/"))
        wait_until(lambda: self.pid is not None, 60, f"{self.command[0]} has started", self.log_file)

    def end(self) -> None:
        pid = self.pid
        if pid is not None:
            end_process(pid, self.command[0])
        self.pid_file.unlink(missing_ok=True)


def read_pid(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text())
    except (OSError, ValueError):
        return None


def command_line(pid: int) -> list[str]:
    """The arguments of a process; empty when there is none, or only a zombie."""
    for _ in range(EXEC_CHECKS):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
        except OSError:
            return []
        if arguments:
            return arguments
        time.sleep(0.02)  # empty for a moment too, while it becomes another program
    return []


def end_process(pid: int, name: str, end_signals: Sequence[signal.Signals] = POLITE) -> None:
    """End a process with the first of these signals that does it, also when it is stopped."""
    arguments = command_line(pid)

    def gone() -> bool:
        return not arguments or command_line(pid) != arguments

    for end_signal in end_signals:
        with suppress(ProcessLookupError):
            os.kill(pid, end_signal)
            os.kill(pid, signal.SIGCONT)
        with suppress(LabError):
            wait_until(gone, 60 if end_signal == signal.SIGKILL else 10, "")
            return
    raise LabError(f"{name} with pid {pid} does not end", f"look at /proc/{pid}/stack and wchan")
