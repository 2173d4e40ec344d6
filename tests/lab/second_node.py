"""A second node of the lab: a libvirtd with directories, a host name and a host UUID of its own.

It has the lab's cluster and its loopback network, in which live migrations between the two run.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from tests.lab.daemon import Daemon, end_process
from tests.lab.hypervisor import QEMU_SETTINGS, Hypervisor, qemu_pids
from tests.lab.lab import Lab
from tests.lab.system_directories import LIBVIRT_DIRECTORIES, remove_tree

HOST_NAME = "second-node"
ADDRESS = "tcp://127.0.0.1"  # where the QEMU of an incoming migration listens

# $1 is the directory with the node's own ones; libvirtd's command follows.
WITHIN = f"""\
hostname {HOST_NAME}
own=$1 && shift
for directory in {" ".join(map(str, LIBVIRT_DIRECTORIES))}; do
    mount --no-mtab --bind "$own$directory" "$directory" || exit
done
mount --no-mtab --bind "$own/passwd" /etc/passwd || exit
mount --no-mtab --bind "$own/group" /etc/group && exec "$@"
"""


@dataclass(frozen=True)
class SecondHypervisor(Hypervisor):
    """Its libvirtd; `directory` holds what it has for itself."""

    @property
    def socket(self) -> Path:
        return self.directory / "run/libvirt/libvirt-sock"

    @property
    def daemon(self) -> Daemon:
        settings = str(self.directory / "libvirtd.conf")
        own_pid_file = str(self.directory / "libvirtd.own.pid")
        return Daemon(
            command=("libvirtd", "--config", settings, "--pid-file", own_pid_file),
            pid_file=self.directory / "libvirtd.pid",
            log_file=self.directory / "libvirtd.log",
            launcher=(
                *("unshare", "--mount", "--uts", "--propagation", "slave"),
                *("sh", "-c", WITHIN, "sh", str(self.directory)),
            ),
        )

    def up(self) -> None:
        for directory in LIBVIRT_DIRECTORIES:
            Path(f"{self.directory}{directory}").mkdir(parents=True)
        (self.directory / "etc/libvirt/qemu.conf").write_text(QEMU_SETTINGS)
        self._configure(f'host_uuid = "{uuid4()}"\n')
        self.start()

    def down(self) -> None:
        self.daemon.end()
        patterns = ("run/libvirt/qemu/*.pid", "var/lib/libvirt/qemu/qmp-*/*.pid")
        for pid in qemu_pids([f"{self.directory}/{pattern}" for pattern in patterns]):
            end_process(pid, "QEMU", [signal.SIGKILL])


class SecondNode:
    """The node, for the functions that also take a lab: `virsh` and `hypervisor` are its own."""

    def __init__(self, lab: Lab) -> None:
        directory = lab.directory / HOST_NAME
        # by its socket, as /run/libvirt is the first node's everywhere but within
        uri = f"qemu+unix:///system?socket={directory}/run/libvirt/libvirt-sock"
        self.hypervisor = SecondHypervisor(directory, uri)

    @property
    def uri(self) -> str:
        """Its libvirt's URI for the first node."""
        return self.hypervisor.uri

    @property
    def within(self) -> tuple[str, ...]:
        """The words before a command that runs on this node."""
        return ("nsenter", f"--target={self.hypervisor.daemon.pid}", "--mount", "--uts")

    def virsh(self, *arguments: str, stdin: bytes = b"") -> str:
        return self.hypervisor.virsh(*arguments, stdin=stdin)


@contextmanager
def second_node(lab: Lab) -> Iterator[SecondNode]:
    """Have one during the block."""
    node = SecondNode(lab)
    try:
        node.hypervisor.up()
        node.hypervisor.define_secret(lab.secret_uuid, lab.ceph_user, lab.cluster.key_file)
        yield node
    finally:
        node.hypervisor.down()
        remove_tree(node.hypervisor.directory)
