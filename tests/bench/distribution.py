"""A guest of a real distribution: a Debian with systemd and QEMU's agent, made by debootstrap."""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab import RbdDisk
from tests.lab.programs import run_program, wait_until

from .bench import Bench, say
from .subjects import POOL

NAME = "bench-debian"
IMAGE = f"{POOL}/{NAME}"
SIZE = "2G"
MEMORY = 512  # MiB
PACKAGES = ("linux-image-cloud-amd64", "systemd-sysv", "qemu-guest-agent")
ROOT = Path(__file__).parents[2]
BOOT_LIMIT = 600  # seconds, in a QEMU that emulates


@contextmanager
def running_debian(bench: Bench) -> Iterator[str]:
    """Have it run during the block, and give its name. It takes the network, and some minutes."""
    lab, root = bench.lab, bench.directory / "debian"
    with ExitStack() as stack:
        _make(root)
        file = bench.directory / "debian.img"
        run_program("truncate", "--size", SIZE, file)
        run_program("mkfs.ext4", "-q", "-d", root, file)
        lab.rbd("import", "--no-progress", str(file), IMAGE)
        stack.callback(lab.delete_image, IMAGE)
        file.unlink()
        lab.define_domain(NAME, [RbdDisk("vda", IMAGE)])
        stack.callback(lab.undefine_domain, NAME)
        definition = _booting(lab.virsh("dumpxml", "--inactive", "--security-info", NAME), root / "boot")
        lab.virsh("define", "/dev/stdin", stdin=definition)
        lab.virsh("start", NAME)
        stack.callback(lab.destroy_domain, NAME)
        answers = f"the agent of {NAME} answers"
        wait_until(lambda: lab.hypervisor.agent_answers(NAME), BOOT_LIMIT, answers, lab.console_log(NAME))
        yield NAME


def read_so_far(bench: Bench, name: str) -> int:
    """Give how many bytes a guest has read from its first disk since it was started."""
    found = re.search(r"rd_bytes (\d+)", bench.lab.virsh("domblkstat", name, "vda"))
    assert found
    return int(found[1])


def _make(root: Path) -> None:
    say("making a Debian")
    run_program(ROOT / "tests/clean-debian", "bookworm", root, timeout=900)
    resolver = Path("/etc/resolv.conf")
    if resolver.exists():
        (root / "etc/resolv.conf").write_text(resolver.read_text())
    apt = ("apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", *PACKAGES)
    command = ["chroot", str(root), "sh", "-c", 'apt-get update --quiet=2 && exec "$@"', "sh", *apt]
    quiet = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    subprocess.run(command, env=quiet, stdout=subprocess.DEVNULL, check=True)
    run_program("chroot", root, "apt-get", "clean")
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")


def _booting(definition: str, boot: Path) -> bytes:
    """Have the domain boot the distribution's kernel."""
    domain = ElementTree.fromstring(definition)
    (kernel,), (initrd,) = boot.glob("vmlinuz-*"), boot.glob("initrd.img-*")
    old = domain.findtext("os/cmdline", "")
    for name, text in (("kernel", kernel), ("initrd", initrd), ("cmdline", f"root=/dev/vda rw {old}")):
        element = domain.find(f"os/{name}")
        assert element is not None
        element.text = str(text)
    for name in ("memory", "currentMemory"):
        element = domain.find(name)
        if element is not None:
            element.text, element.attrib["unit"] = str(MEMORY), "MiB"
    return ElementTree.tostring(domain)
