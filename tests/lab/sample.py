"""The sample domains that the tests and the demo have in common."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import rados
import rbd

from tests.lab.domain import RbdDisk
from tests.lab.lab import Lab

MIB = 1 << 20
WRITE_SIZE = 4 * MIB

WEB = "web01"  # running, two disks, guest agent
DATABASE = "db01"  # running, no guest agent
ARCHIVE = "old01"  # shut off; its size is no multiple of anything
MEDIA = "media01"  # shut off; beside an RBD image it has a cdrom drive and a disk in a file

ARCHIVE_SIZE = 100 * MIB + 1023
NOT_COVERED = """
    <disk type='file' device='cdrom'>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='file' device='disk'>
      <source file='{file}'/>
      <target dev='vdb' bus='virtio'/>
    </disk>"""


def add_sample_domains(lab: Lab) -> None:
    """Define all of them, start those that run, and wait until they write to their disks."""
    for spec, size in ((f"vms/{WEB}-root", 256), (f"ssd/{WEB}-data", 128), (f"vms/{DATABASE}", 200)):
        lab.create_image(spec, size * MIB)
    make_image(lab, f"vms/{ARCHIVE}", ARCHIVE_SIZE, {0: 3 * MIB, 42 * MIB: 4096, ARCHIVE_SIZE - 7: 7})
    make_image(lab, f"vms/{MEDIA}", 64 * MIB, {8 * MIB: 8 * MIB})
    file_disk = lab.directory / "file-disk.img"
    file_disk.touch()
    lab.define_domain(DATABASE, [RbdDisk("vda", f"vms/{DATABASE}")], agent=False)
    lab.define_domain(WEB, [RbdDisk("vda", f"vms/{WEB}-root"), RbdDisk("vdb", f"ssd/{WEB}-data")])
    lab.define_domain(ARCHIVE, [RbdDisk("vda", f"vms/{ARCHIVE}")])
    lab.define_domain(MEDIA, [RbdDisk("vda", f"vms/{MEDIA}")], extra_xml=NOT_COVERED.format(file=file_disk))
    lab.start_domain(DATABASE, wait_for_agent=False)
    lab.start_domain(WEB, wait_for_agent=True)
    for name in (WEB, DATABASE):
        lab.wait_for_ticks(name)


@contextmanager
def large_domain(lab: Lab) -> Iterator[str]:
    """Have a domain during the block that is shut off, with two images, the second of which takes a while."""
    make_image(lab, "vms/large-first", 4 * MIB, {0: MIB})
    make_image(lab, "vms/large", 256 * MIB, {0: 200 * MIB})
    lab.define_domain("large", [RbdDisk("vda", "vms/large-first"), RbdDisk("vdb", "vms/large")])
    try:
        yield "large"
    finally:
        lab.undefine_domain("large")
        for spec in ("vms/large-first", "vms/large"):
            lab.rbd("snap", "purge", "--no-progress", spec)  # where a test has failed
            lab.delete_image(spec)


def remove_domain(lab: Lab, name: str, *specs: str) -> None:
    """Remove what is there of a domain, which may run, and of its images."""
    if name in lab.virsh("list", "--name").split():
        lab.destroy_domain(name)
    if name in lab.virsh("list", "--all", "--name").split():
        lab.virsh("undefine", "--keep-nvram", name)
    for spec in specs:
        pool, image = spec.split("/")
        if image in lab.rbd("ls", pool).decode().split():
            lab.delete_image(spec)


def make_image(lab: Lab, spec: str, size: int, data: Mapping[int, int], *options: str) -> None:
    """Make an image of `size` bytes with random data of these lengths at these offsets, holes elsewhere.

    Written byte for byte, as a guest would: `rbd import` fills whole objects.
    """
    lab.create_image(spec, size, *options)
    generator = random.Random(spec)
    pool, *namespace, name = spec.split("/")
    with ExitStack() as stack:
        cluster = stack.enter_context(rados.Rados(conffile=str(lab.ceph_conf)))
        opened = stack.enter_context(cluster.open_ioctx(pool))
        opened.set_namespace("".join(namespace))
        image = stack.enter_context(rbd.Image(opened, name))
        for offset, length in data.items():
            for start in range(offset, offset + length, WRITE_SIZE):
                image.write(generator.randbytes(min(WRITE_SIZE, offset + length - start)), start)
