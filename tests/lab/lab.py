"""The lab as tests and the demo see it: up, down, images, domains and the processes behind them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from tests.lab import cluster, hypervisor
from tests.lab.cluster import Cluster
from tests.lab.daemon import Daemon
from tests.lab.domain import AGENT_CHANNEL, CephAccess, GuestFiles, RbdDisk, domain_xml
from tests.lab.errors import LabError
from tests.lab.guest_packages import guest_packages
from tests.lab.hypervisor import Hypervisor, refuse_running_libvirt
from tests.lab.initramfs import build_initramfs
from tests.lab.programs import end_of, require_programs, wait_until
from tests.lab.system_directories import SystemDirectories, remove_tree

CONSOLE_END = 64 << 10  # bytes of a console in which its newest tick is looked for
MACHINE_CEPH_CONF = Path("/etc/ceph/ceph.conf")
PROGRAMS = (
    *("ceph", "ceph-mon", "ceph-osd", "monmaptool", "rbd"),
    *("libvirtd", "virsh", "qemu-system-x86_64"),
    *("apt-get", "apt-cache", "dpkg-deb", "ldd", "mkfs.ext4", "mount", "setpriv", "setsid", "unshare"),
)


class Lab:
    """One lab in one directory; another process finds it again by the same directory."""

    libvirt_uri = hypervisor.URI
    ceph_user = cluster.USER
    secret_uuid = UUID("6b5a2c1e-0f43-4d0c-9c57-1ab000000001")

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.cluster = Cluster(self.directory / "ceph")
        self.hypervisor = Hypervisor(self.directory / "libvirt")
        self._consoles = self.directory / "consoles"
        self._guest = GuestFiles(self.directory / "vmlinuz", self.directory / "initramfs")
        self._marker = self.directory / "this-is-a-lab"
        self._system = SystemDirectories(self.directory)

    def up(self) -> None:
        self._refuse()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._marker.touch()
        try:
            self._bring_up()
        except BaseException:
            with suppress(LabError):
                self.down()
            raise

    def down(self) -> None:
        """End all processes of the lab and remove everything that it made; safe to repeat."""
        if self.exists():
            self.hypervisor.down()
            self.cluster.down()
        self._system.restore()
        if self.exists():
            remove_tree(self.directory)

    def exists(self) -> bool:
        """Whether the directory holds a lab, or what is left of one."""
        return self._marker.exists()

    @property
    def ceph_conf(self) -> Path:
        return self.cluster.conf

    @property
    def admin_keyring(self) -> Path:
        return self.cluster.directory / "ceph.client.admin.keyring"

    @property
    def mon_pid(self) -> int:
        return _running(self.cluster.monitor)

    @property
    def osd_pid(self) -> int:
        return _running(self.cluster.osd)

    @property
    def libvirtd_pid(self) -> int:
        return _running(self.hypervisor.daemon)

    def processes(self) -> list[int]:
        """The pids of the daemons and of the running domains' QEMUs."""
        daemons = (self.cluster.monitor, self.cluster.osd, self.hypervisor.daemon)
        return [*(daemon.pid for daemon in daemons if daemon.pid), *hypervisor.qemu_pids()]

    def stop_libvirtd(self) -> None:
        self.hypervisor.daemon.end()

    def start_libvirtd(self) -> None:
        self.hypervisor.start()

    def ceph(self, *arguments: str) -> str:
        return self.cluster.ceph(*arguments)

    def rbd(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        return self.cluster.rbd(*arguments, stdin=stdin)

    def virsh(self, *arguments: str, stdin: bytes = b"") -> str:
        return self.hypervisor.virsh(*arguments, stdin=stdin)

    def create_image(self, spec: str, size: int, *options: str) -> None:
        self.rbd("create", spec, "--size", f"{size}B", *options)

    def delete_image(self, spec: str) -> None:
        """Delete it, once Ceph has forgotten its clients: that takes 30 s where one was killed."""
        try:
            wait_until(lambda: self._deletes(spec), 90, f"no client has {spec} open")
        except LabError as error:
            raise LabError(str(error), self.rbd("status", spec).decode()) from error

    def _deletes(self, spec: str) -> bool:
        try:
            self.rbd("remove", "--no-progress", spec)
        except LabError as error:
            if "image still has watchers" in str(error):
                return False
            raise
        return True

    def define_domain(
        self,
        name: str,
        disks: Sequence[RbdDisk],
        *,
        agent: bool = True,
        extra_xml: str = "",
        uuid: UUID | str | None = None,
    ) -> None:
        access = CephAccess(cluster.ADDRESS, cluster.MESSENGER_V1_PORT, self.ceph_user, self.secret_uuid)
        devices = (AGENT_CHANNEL if agent else "") + extra_xml
        console = self.console_log(name)
        definition = domain_xml(name, uuid, self._guest, console, disks, access, devices)
        self.virsh("define", "/dev/stdin", stdin=definition.encode())

    def start_domain(self, name: str, wait_for_agent: bool) -> None:
        self.virsh("start", name)
        if wait_for_agent:
            answered = f"the agent of {name} answers"
            wait_until(lambda: self.hypervisor.agent_answers(name), 300, answered, self.console_log(name))

    def destroy_domain(self, name: str) -> None:
        self.virsh("destroy", name)

    def undefine_domain(self, name: str) -> None:
        self.virsh("undefine", name)

    def console_log(self, name: str) -> Path:
        return self._consoles / f"{name.replace('/', '_')}.log"

    def ticks(self, name: str) -> int:
        """The newest counter that the guest says it has written; 0 before the first."""
        with suppress(FileNotFoundError), self.console_log(name).open("rb") as console:
            console.seek(max(0, console.seek(0, os.SEEK_END) - CONSOLE_END))
            found = re.findall(rb"lab: tick (\d+)\r?\n", console.read())
            return int(found[-1]) if found else 0
        return 0

    def wait_for_ticks(self, name: str, beyond: int = 0) -> int:
        """Wait until the guest has written a counter larger than this, and return it."""
        written = f"{name} writes beyond tick {beyond}"
        wait_until(lambda: self.ticks(name) > beyond, 300, written, self.console_log(name))
        return self.ticks(name)

    def began_at(self, name: str) -> int:
        """Return the counter that a guest with a new console found on its first disk when it booted."""
        self.wait_for_ticks(name)
        return int(re.findall(rb", from tick (\d+)\r?\n", self.console_log(name).read_bytes())[-1])

    def _refuse(self) -> None:
        if os.geteuid() != 0:
            raise LabError("the lab needs root for qemu:///system", "run it with sudo")
        self._remove_a_dead_lab()
        if self.exists():
            hint = f"take it down first: python3 -m tests.lab down --directory {self.directory}"
            raise LabError(f"{self.directory} holds a lab already", hint)
        if self.directory.exists() and any(self.directory.iterdir()):
            raise LabError(f"{self.directory} is not empty", "name a directory that does not exist yet")
        refuse_running_libvirt()
        if MACHINE_CEPH_CONF.exists():
            hint = "the lab only runs where no Ceph is configured: use another machine"
            raise LabError(f"{MACHINE_CEPH_CONF} exists", hint)
        self.cluster.refuse_taken_ports()
        require_programs(*PROGRAMS)

    def _remove_a_dead_lab(self) -> None:
        """A machine that lost its power never took its lab down."""
        directory = self._system.taken_by()
        if directory is None:
            return
        other = Lab(directory)
        if other.processes():
            hint = f"take it down first: python3 -m tests.lab down --directory {directory}"
            raise LabError(f"the lab in {directory} is up", hint)
        other.down()

    def _bring_up(self) -> None:
        self._consoles.mkdir()
        packages = guest_packages()
        shutil.copyfile(packages.kernel, self._guest.kernel)
        build_initramfs(packages, self._guest.initramfs)
        self.cluster.up()
        self._system.set_aside()
        self.hypervisor.up()
        self.hypervisor.define_secret(self.secret_uuid, self.ceph_user, self.cluster.key_file)


@contextmanager
def running_lab(directory: Path) -> Iterator[Lab]:
    lab = Lab(directory)
    lab.up()
    try:
        yield lab
    finally:
        lab.down()


def _running(daemon: Daemon) -> int:
    pid = daemon.pid
    if pid is None:
        raise LabError(f"{daemon.command[0]} does not run", end_of(daemon.log_file))
    return pid
