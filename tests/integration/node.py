"""A node under test: its configuration, its repository, and main.py run on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, Callable

from tests.integration.terminal import Terminal, on_terminal
from tests.lab import Lab
from tests.quick_repository import PASSWORD, make_repository

MAIN = Path(__file__).parents[2] / "main.py"
PYTHON = "/usr/bin/python3"  # the distribution's: rados and rbd exist for no other
PREFIX = "virt-rbd-backup."
SLOW = 32 << 20  # bytes/s, as MAX_READ_RATE


class Node:
    """main.py with a configuration of its own in one directory."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        self.repository = directory / "repository"
        self.report_file = directory / "report.json"
        self.runtime_dir = directory / "runtime"
        self.password_file = directory / "password"
        self.password_file.write_text(PASSWORD)
        self.password_file.chmod(0o600)
        make_repository(self.repository)
        self.constants: dict[str, Any] = {
            "CEPH_CONF": str(lab.ceph_conf),
            "CEPH_TIMEOUT": 20,
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD_FILE": str(self.password_file),
            "RUNTIME_DIR": str(self.runtime_dir),
            "REPORT_FILE": str(self.report_file),
            "STATE_DIR": str(directory / "state"),
            "LOCK_DURATION": 6,
            "RETRY_FOR": 0,
            "AGENT_BOOT_TIMEOUT": 0,  # the lab's guests have always just started
        }
        self.environment: dict[str, str] = {}  # further variables for main.py

    @property
    def _environment(self) -> dict[str, str]:
        """Name the configuration, and with it this node in all of its processes' environments."""
        return {
            **os.environ,
            **self.environment,
            "VIRT_RBD_BACKUP_CONFIG": str(self.directory / "settings.py"),
            "RESTIC_CACHE_DIR": str(self.directory / "cache"),
            "TMPDIR": str(self.directory),  # where a restic that is killed leaves its temporary files
        }

    def command(self, *words: str, **constants: Any) -> list[str]:
        """Write the configuration, with these constants changed, and give the command line."""
        path = self.directory / "settings.py"
        lines = [f"{name} = {value!r}\n" for name, value in {**self.constants, **constants}.items()]
        draft = path.with_suffix(".draft")
        draft.write_text("".join(lines))
        draft.rename(path)  # a command that has just been started may be reading the last one
        return [PYTHON, str(MAIN), *words]

    def run(self, *words: str, **constants: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return self._run(self.command(*words, **constants))

    def run_elsewhere(self, *words: str, **constants: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on another node, with a host name and a runtime directory of its own."""
        runtime_dir = str(self.directory / "other-node")
        changed = ("unshare", "--uts", "sh", "-c", 'hostname other-node; exec "$@"', "sh")
        return self.run_within(changed, *words, RUNTIME_DIR=runtime_dir, **constants)

    def run_within(
        self, changed: Sequence[str], *words: str, **constants: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in surroundings that the words before it make."""
        return self._run([*changed, *self.command(*words, **constants)])

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    @contextmanager
    def started(self, *words: str, **constants: Any) -> Iterator[subprocess.Popen[str]]:
        """Start a command in a session of its own; it has ended after the block."""
        with subprocess.Popen(
            self.command(*words, **constants),
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_interruptible,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def on_terminal(self, *words: str, **constants: Any) -> AbstractContextManager[Terminal]:
        """Start a command on a terminal of its own."""
        return on_terminal(self.command(*words, **constants), self._environment)

    def processes(self, word: str) -> Sequence[int]:
        """Give the pids of this node's processes with the word in their command lines."""
        mark = str(self.directory)
        return [
            pid
            for pid, (line, environment) in _all_processes().items()
            if word in line and mark in environment
        ]

    def workers(self) -> Sequence[int]:
        """Give the pids of a started command's processes that do jobs, by their titles."""
        parents = {}
        for pid in self.processes("virt-rbd-backup: "):
            with suppress(OSError):  # it has just ended
                above = parent(pid)
                if os.getsid(pid) != pid and _command_line(pid) != _command_line(above):
                    parents[pid] = above
        # what main or a worker starts has its title, too, until it is another program
        return [pid for pid in parents if parents[pid] not in parents]

    def watchdogs(self) -> Sequence[int]:
        """Give the pid of the run's watchdog, which has a session of its own by then."""
        return self.processes("virt-rbd-backup: watchdog")

    def report(self) -> dict[str, Any]:
        """Give the last run's report, its domains by their names."""
        report: dict[str, Any] = json.loads(self.report_file.read_text())
        report["domains"] = {domain["name"]: domain for domain in report["domains"]}
        return report

    def restic(self, *arguments: str) -> bytes:
        """Run restic by hand."""
        return self._by_hand(["restic", *arguments], self.directory)

    def shell(self, line: str, directory: Path) -> None:
        """Run a line of shell with restic's and Ceph's environment, as an admin would by hand."""
        self._by_hand(["bash", "-o", "pipefail", "-c", line], directory)

    def _by_hand(self, command: Sequence[str], directory: Path) -> bytes:
        environment = {
            **self._environment,
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD_FILE": str(self.password_file),
            "CEPH_CONF": str(self.lab.ceph_conf),
        }
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def snapshots(self, *tags: str) -> list[dict[str, Any]]:
        """List what the repository holds with all of these tags."""
        listed = json.loads(self.restic("snapshots", "--json")) or []
        return [one for one in listed if set(tags) <= set(one.get("tags") or ())]

    def definition(self, domain: str) -> dict[str, bytes]:
        """Give the files of the domain's only definition.tar, which may be in the segments' snapshot."""
        (snapshot,) = [one for one in self.snapshots("definition") if one["hostname"] == domain]
        with_segments = any(tag.startswith("segments.") for tag in snapshot["tags"])
        name = "/~definition.tar" if with_segments else "definition.tar"
        with tarfile.open(fileobj=BytesIO(self.dump(snapshot["id"], name))) as tar:
            return {member.name: _content(tar, member) for member in tar}

    def dump(self, restore_id: str, file_name: str) -> bytes:
        """Read a file back."""
        return self.restic("dump", restore_id, file_name)


def _interruptible() -> None:
    """Undo what a shell does to a test session in its background, whose children would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: Any = tar.extractfile(member)
    content: bytes = file.read()
    return content


def metadata(domain: str, element: str = "", *options: str) -> Sequence[str]:
    """Give the words for virsh that set what a domain says of its own backup, or remove it."""
    change = ("--set", element) if element else ("--remove",)
    return ("metadata", domain, "--uri", "virt-rbd-backup", "--key", "backup", *change, *options)


def snapshot_names(lab: Lab, spec: str, prefix: str = PREFIX) -> Sequence[str]:
    """List an image's snapshots whose names begin with the prefix."""
    listed = json.loads(lab.rbd("snap", "ls", "--format", "json", spec))
    return [snapshot["name"] for snapshot in listed if snapshot["name"].startswith(prefix)]


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until it is true. Fails the test after so many seconds of an idle machine."""
    within(condition, 4 * seconds, what)


def within(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until it is true. Fails the test after so many seconds, however busy the machine is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def _all_processes() -> dict[int, tuple[str, str]]:
    """Give the command line and the environment of all that runs on this machine, by pid."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            line, environment = ((directory / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue  # it has just ended
        found[int(directory.name)] = (_words(line), _words(environment))
    return found


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def parent(pid: int) -> int:
    """Give the pid of a process's parent."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


def _words(strings: bytes) -> str:
    return strings.decode(errors="replace").replace("\0", " ")
