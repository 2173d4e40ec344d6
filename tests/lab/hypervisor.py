"""A libvirtd for qemu:///system, started directly, and the virsh calls that the lab needs."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from tests.lab.daemon import Daemon, command_line, end_process, read_pid
from tests.lab.errors import LabError
from tests.lab.programs import end_of, run_program, wait_until

URI = "qemu:///system"
QEMU_CONFIGURATION = Path("/etc/libvirt/qemu.conf")
SOCKETS = (Path("/run/libvirt/libvirt-sock"), Path("/run/libvirt/virtqemud-sock"))
# Domains, and the QEMU that libvirtd asks for its capabilities.
QEMU_PID_FILES = ("/run/libvirt/qemu/*.pid", "/var/lib/libvirt/qemu/qmp-*/*.pid")

LIBVIRTD_SETTINGS = """\
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:stderr"
"""
QEMU_SETTINGS = """\
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
# libvirtd does not start without the user that is compiled in, whatever qemu.conf says. The user is
# shown to libvirtd and its QEMUs alone; mounts that others make later reach them as well.
QEMU_USER = "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin"
QEMU_GROUP = "libvirt-qemu:x:64055:"
WITH_USERS = (
    'mount --no-mtab --bind "$0" /etc/passwd && mount --no-mtab --bind "$1" /etc/group && shift && exec "$@"'
)
SECRET = """\
<secret ephemeral='no' private='no'>
  <uuid>{uuid}</uuid>
  <usage type='ceph'><name>client.{user} secret</name></usage>
</secret>
"""


@dataclass(frozen=True)
class Hypervisor:
    directory: Path
    uri: str = URI

    @property
    def daemon(self) -> Daemon:
        settings = str(self.directory / "libvirtd.conf")
        # libvirtd writes a pid file of its own, by default outside of the lab.
        own_pid_file = str(self.directory / "libvirtd.own.pid")
        return Daemon(
            command=("libvirtd", "--config", settings, "--pid-file", own_pid_file),
            pid_file=self.directory / "libvirtd.pid",
            log_file=self.directory / "libvirtd.log",
            launcher=(
                *("unshare", "--mount", "--propagation", "slave", "sh", "-c", WITH_USERS),
                *(str(self.directory / "passwd"), str(self.directory / "group")),
            ),
        )

    def up(self) -> None:
        self.directory.mkdir()
        self._configure()
        QEMU_CONFIGURATION.write_text(QEMU_SETTINGS)
        self.start()

    def _configure(self, more_settings: str = "") -> None:
        (self.directory / "libvirtd.conf").write_text(LIBVIRTD_SETTINGS + more_settings)
        _extend(Path("/etc/passwd"), QEMU_USER, self.directory / "passwd")
        _extend(Path("/etc/group"), QEMU_GROUP, self.directory / "group")

    def start(self) -> None:
        self.daemon.start()
        wait_until(self._answers, 120, "libvirtd answers", self.daemon.log_file)

    def down(self) -> None:
        self.daemon.end()
        for pid in qemu_pids():
            end_process(pid, "QEMU", [signal.SIGKILL])

    def define_secret(self, uuid: UUID, user: str, key_file: Path) -> None:
        definition = SECRET.format(uuid=uuid, user=user).encode()
        self.virsh("secret-define", "/dev/stdin", stdin=definition)
        self.virsh("secret-set-value", str(uuid), "--file", str(key_file))

    def virsh(self, *arguments: str, stdin: bytes = b"") -> str:
        return run_program("virsh", "--quiet", "--connect", self.uri, *arguments, stdin=stdin).decode()

    def agent_answers(self, domain: str) -> bool:
        ping = ("qemu-agent-command", domain, "--timeout", "5", '{"execute": "guest-ping"}')
        try:
            self.virsh(*ping)
        except LabError:
            return False
        return True

    def _answers(self) -> bool:
        if self.daemon.pid is None:
            raise LabError("libvirtd has ended", end_of(self.daemon.log_file))
        with suppress(LabError):
            return bool(self.virsh("uri"))
        return False


def refuse_running_libvirt() -> None:
    hint = "the lab needs qemu:///system for itself: stop it, or use another machine"
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name, pid = (process / "comm").read_text().strip(), int(process.name)
            if name in ("libvirtd", "virtqemud") and command_line(pid):
                raise LabError(f"{name} runs already, with pid {pid}", hint)
    for path in SOCKETS:
        if _listens(path):
            raise LabError(f"something answers at {path}", hint)


def _extend(source: Path, line: str, destination: Path) -> None:
    destination.write_text(f"{source.read_text().rstrip()}\n{line}\n")


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def qemu_pids(patterns: Sequence[str] = QEMU_PID_FILES) -> Iterator[int]:
    for pattern in patterns:
        for pid_file in Path("/").glob(pattern.lstrip("/")):
            pid = read_pid(pid_file)
            if pid and re.search(r"/(qemu|kvm)[^/]*$", (command_line(pid) or [""])[0]):
                yield pid
