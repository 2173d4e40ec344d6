"""A guest that is lost, and restored while it runs; it records each of its writes."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import rados

from tests.chaos.records import gap
from tests.integration.node import Node
from tests.lab import Lab, LabError, RbdDisk
from tests.lab.guest_filesystem import CHECK_EXIT_CODES
from tests.lab.hypervisor import qemu_pids
from tests.lab.programs import run_program
from tests.lab.sample import MIB

NAME = "instant01"
IMAGES = {"vda": "vms/instant01-a", "vdb": "ssd/instant01-b"}
SIZE = 64 * MIB
RECORD = "virt-rbd-backup.instant."  # how the objects begin that have what is under way
RECORDS = "lab.records"  # on the guest's kernel command line: append each tick to a file, too


@dataclass(frozen=True)
class RestoredGuest:
    """The guest, whose domain and images are lost. `saved_at` is its tick just before it was saved."""

    node: Node
    lab: Lab
    saved_at: int
    definition: str
    uuid: str
    used: int  # bytes of its images, as they were before
    name: str = NAME

    @property
    def state(self) -> str:
        return self.lab.virsh("domstate", self.name).strip()

    def sources(self, *options: str) -> Sequence[str]:
        """Name the images of its disks."""
        lines = self.lab.virsh("domblklist", self.name, *options).splitlines()
        return [line.split()[1] for line in lines if line.strip()]

    def images(self) -> Sequence[str]:
        """List all images of its pools that are about it."""
        names = {pool: self.lab.rbd("ls", pool).decode().split() for pool in ("vms", "ssd")}
        listed = [(pool, name) for pool, found in names.items() for name in found]
        return sorted(f"{pool}/{name}" for pool, name in listed if name.startswith(NAME))

    def require_on_images(self, images: Mapping[str, str] = IMAGES) -> None:
        """Have it run on its images, defined as it was, and nothing else of the restore anywhere."""
        assert self.state == "running"
        self.lab.wait_for_ticks(self.name, beyond=self.lab.ticks(self.name) + 2)
        assert self.sources() == self.sources("--inactive") == list(images.values())
        assert self.images() == sorted(images.values())
        assert self.records() == []
        if self.name == NAME:
            now = self.lab.virsh("dumpxml", "--inactive", "--security-info", NAME)
            assert comparable(now) == comparable(self.definition)

    def records(self) -> Sequence[str]:
        """List the records of instant restores in the cluster, as pool/object."""
        found = []
        with rados.Rados(conffile=str(self.lab.ceph_conf)) as cluster:
            for pool in ("vms", "ssd"):
                with cluster.open_ioctx(pool) as opened:
                    names = [entry.key for entry in opened.list_objects()]
                found += [f"{pool}/{name}" for name in names if name.startswith(RECORD)]
        return found

    def require_no_gap(self, images: Mapping[str, str] = IMAGES, printed: int = 0) -> None:
        """Shut it off, and find each tick on each disk, from the first to the last that it has printed.

        `printed`: that one, if it is shut off already, and perhaps not defined here.
        """
        if not printed:
            printed = self.lab.ticks(self.name)
            if self.state != "shut off":
                self.lab.destroy_domain(self.name)
        for image in images.values():
            lines = self._recorded(image)
            assert gap(lines) == "", image
            assert int(lines[-2].lstrip("b")) >= printed, f"{image}: a tick that was printed is not there"
            assert self.saved_at in {int(line.lstrip("b")) for line in lines[:-1]}

    def _recorded(self, image: str) -> list[str]:
        with tempfile.NamedTemporaryFile() as file:
            exported = self.lab.rbd("export", "--no-progress", image, "-")
            Path(file.name).write_bytes(exported)
            run_program("e2fsck", "-f", "-p", file.name, accepted=CHECK_EXIT_CODES)
            return run_program("debugfs", "-R", "cat records", file.name).decode(errors="replace").split("\n")

    def copy(self, name: str) -> RestoredGuest:
        """Give the domain of this name, a copy of this one."""
        return replace(self, name=name)

    def ticks_since(self, tick: int) -> bool:
        return self.lab.ticks(self.name) > tick

    def remove(self) -> None:
        """Remove what is there of it."""
        with suppress(LabError):
            self.lab.destroy_domain(self.name)
        with suppress(LabError):
            self.lab.virsh("undefine", "--nvram", self.name)
        for image in self.images() if self.name == NAME else []:
            if not self.definition:  # it has not come as far as to be lost
                self.lab.rbd("snap", "purge", "--no-progress", image)
            self.lab.delete_image(image)
        with rados.Rados(conffile=str(self.lab.ceph_conf)) as cluster:
            for record in self.records():
                pool, name = record.split("/")
                with cluster.open_ioctx(pool) as opened:
                    opened.remove_object(name)


def used_bytes(lab: Lab) -> int:
    """Give how many bytes the guest's images occupy, in whole objects."""
    listed = [json.loads(lab.rbd("du", "--format", "json", image)) for image in IMAGES.values()]
    return sum(int(one["used_size"]) for found in listed for one in found["images"])


def comparable(xml: str) -> str:
    """Give a definition without what libvirt chooses anew at each start."""
    domain = ElementTree.fromstring(xml)
    return ElementTree.canonicalize(ElementTree.tostring(domain, encoding="unicode"), strip_text=True)


def images_dir(tmp_path: Path) -> Path:
    """Make a directory that QEMU's user reaches, for DRILL_DIR."""
    for directory in (tmp_path, *tmp_path.parents[:-2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    directory = tmp_path / "images"
    directory.mkdir(mode=0o711)
    return directory


@contextmanager
def lost_guest(
    node: Node, lab: Lab, autostart: bool = False, system: str = "</os>"
) -> Iterator[RestoredGuest]:
    """Have a guest that was saved, and lost; remove what is there of it after the block.

    `system` ends its <os>.
    """
    guest = RestoredGuest(node, lab, 0, "", "", 0)
    try:
        guest = _saved_and_lost(guest, autostart, system)
        yield guest
    finally:
        guest.remove()


def _saved_and_lost(guest: RestoredGuest, autostart: bool, system: str) -> RestoredGuest:
    node, lab = guest.node, guest.lab
    for image in IMAGES.values():
        lab.create_image(image, SIZE)
    lab.define_domain(NAME, [RbdDisk(target, image) for target, image in IMAGES.items()])
    xml = lab.virsh("dumpxml", "--inactive", NAME)
    changed = xml.replace("</cmdline>", f" {RECORDS}</cmdline>").replace("</os>", system)
    lab.virsh("define", "/dev/stdin", stdin=changed.encode())
    if autostart:
        lab.virsh("autostart", NAME)
    lab.start_domain(NAME, wait_for_agent=True)
    lab.wait_for_ticks(NAME, beyond=2)
    definition = lab.virsh("dumpxml", "--inactive", "--security-info", NAME)
    uuid = lab.virsh("domuuid", NAME).strip()
    saved_at = lab.ticks(NAME)
    done = node.run("backup", NAME)
    assert done.returncode == 0, done.stderr
    lab.destroy_domain(NAME)
    used = used_bytes(lab)
    lab.virsh("undefine", "--keep-nvram", NAME)
    for image in IMAGES.values():
        lab.rbd("snap", "purge", "--no-progress", image)  # base snapshots
        lab.delete_image(image)
    lab.console_log(NAME).unlink()
    return RestoredGuest(node, lab, saved_at, definition, uuid, used)


@dataclass(frozen=True)
class Qemu:
    """A guest's QEMU on this machine."""

    pid: int

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def qemus(name: str) -> Sequence[Qemu]:
    """Give the QEMUs of a guest, at most one."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in qemu_pids()}
    return [Qemu(pid) for pid, line in lines.items() if f"guest={name}," in line]
